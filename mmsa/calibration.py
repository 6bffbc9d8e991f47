"""The temperature of an export, `calibration.json`: read, written and applied to logits.

It divides the logits and changes no prediction, only the probabilities (Guo et al., ICML 2017). How
it is fitted: mmsa/evaluation/scores/calibration.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.json_text import parse_json

CALIBRATION_NAME = "calibration.json"
FITTED_ON = "val"


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it was fitted on; `loss` is the log loss there, before and after."""

    temperature: float
    fitted_on: str
    num_samples: int
    shards_digest: str
    loss_before: float
    loss_after: float


def to_json(calibration: Calibration) -> str:
    """The content of `calibration.json`."""
    return json.dumps(asdict(calibration), indent=1) + "\n"


def read_calibration(export: Path) -> Calibration | None:
    """The calibration of an export directory; None where it has none, `UserError` if damaged."""
    path = export / CALIBRATION_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        found = Calibration(**content)
        if not (isinstance(found.temperature, float) and found.temperature > 0):
            raise ValueError(f"the temperature is {found.temperature!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} does not contain a calibration ({error}); fit it again with: "
            "python evaluate.py EXPORT --split val --calibrate"
        ) from None
    return found
