"""The temperature of an export, `calibration.json`: read, written and applied to logits.

It divides the logits and changes no prediction, only the probabilities (Guo et al., ICML 2017). How
it is fitted: mmsa/evaluation/scores/calibration.py. The file holds its own digest, so that it can
be added to an export, replaced or removed by one rename.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json

CALIBRATION_NAME = "calibration.json"
FITTED_ON = "val"
_DIGEST_KEY = "sha256"  # early versions wrote none


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
    """The content of `calibration.json`: the calibration, and the digest of its values."""
    values = asdict(calibration)
    return json.dumps({**values, _DIGEST_KEY: _digest(values)}, indent=1) + "\n"


def store_calibration(export: Path, calibration: Calibration) -> None:
    """Write the calibration of an export directory.

    Raises `UserError` if the directory is gone, which is not made again, or cannot be written.
    """
    path = export / CALIBRATION_NAME
    try:
        write_file(path, to_json(calibration), make_directory=False)
    except FileNotFoundError:
        raise UserError(
            f"{export} was removed by its run during the evaluation, so the temperature has no "
            "export to be stored in; repeat the command"
        ) from None
    except OSError as error:
        raise UserError(
            f"the temperature cannot be written to {path} ({error.strerror or error}); free some "
            "space, or evaluate a writable copy of the export"
        ) from None


def read_calibration(export: Path) -> Calibration | None:
    """The calibration of an export directory; None where it has none, `UserError` if damaged."""
    path = export / CALIBRATION_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        digest = content.pop(_DIGEST_KEY, None)
        if digest is not None and digest != _digest(content):
            raise ValueError("its digest is of other values")
        found = Calibration(**content)
        if not (isinstance(found.temperature, float) and 0 < found.temperature < math.inf):
            raise ValueError(f"the temperature is {found.temperature!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} does not contain a calibration ({error}); fit it again with: "
            "python evaluate.py EXPORT --split val --calibrate"
        ) from None
    return found


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()
