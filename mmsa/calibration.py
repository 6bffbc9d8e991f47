"""The temperature of an export, `calibration.json`: read, written and applied to logits.

It divides the logits and changes no prediction, only the probabilities (Guo et al., ICML 2017). How
it is fitted: mmsa/evaluation/scores/calibration.py. The file holds its own digest, so that it
can be added to an export, replaced or removed by one rename.

Too few samples do not determine a temperature: three that are predicted correctly ask for the
smallest one, and give every answer the probability 1. `python -m benchmarks.small_samples` draws
validation sets of models whose right temperature is known (1, 1.5 or 2; 3 or 7 classes). Of 10
samples, the fitted temperature raises the log loss on new samples by 0.1 to 0.6 nats on average
where none is needed, and in up to 47 % of the sets where 1.5 is right. Of `MIN_SAMPLES` = 50 it
costs 0.013 nats where none is needed, lowers the loss in 88 % or more of the other sets and never
ends at a bound. More samples change little: 0.005 nats of 100.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json

CALIBRATION_NAME = "calibration.json"
FITTED_ON = "val"
_DIGEST_KEY = "sha256"  # early versions wrote none
MIN_SAMPLES = 50  # of the validation split
TEMPERATURES = (0.05, 20.0)  # the range of the search
_AT_A_BOUND = 1.01  # a search ends a little inside its range


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it was fitted on; `loss` is the log loss there, before and after.

    `temperature` is None if the split does not determine one; `why_none` says why, as text.
    """

    temperature: float | None
    fitted_on: str
    num_samples: int
    shards_digest: str
    loss_before: float
    loss_after: float
    why_none: str | None = None


def temperature_of(calibration: Calibration | None) -> float:
    """What divides the logits: 1 where there is no temperature."""
    if calibration is None or calibration.temperature is None:
        return 1.0
    return calibration.temperature


def checked(fitted: Calibration) -> Calibration:
    """`fitted` if its split determines a temperature; otherwise one without, which says why."""
    if fitted.temperature is None:
        return fitted
    why = None
    low, high = TEMPERATURES
    if fitted.num_samples < MIN_SAMPLES:
        why = (
            f"it would be fitted on {fitted.num_samples:,} validation sample(s), and fewer than "
            f"{MIN_SAMPLES} do not determine it"
        )
    elif not low * _AT_A_BOUND < fitted.temperature < high / _AT_A_BOUND:
        which = "lower" if fitted.temperature < 1 else "upper"
        why = (
            f"the fit on {fitted.num_samples:,} validation samples ended at {fitted.temperature:g},"
            f" the {which} bound of the search, so these samples do not determine it"
        )
    if why is None:
        return fitted
    return replace(fitted, temperature=None, loss_after=fitted.loss_before, why_none=why)


def without_temperature(why_none: str) -> str:
    """The sentence about an export without a temperature, without its full stop."""
    return f"no temperature: {why_none}; probabilities stay as the model computes them"


def described(fitted: Calibration) -> str:
    """The result of a fit as text, without a full stop."""
    if fitted.temperature is None:
        return without_temperature(str(fitted.why_none))
    return (
        f"temperature {fitted.temperature:.4g}, fitted on {fitted.num_samples} validation "
        f"samples (log loss {fitted.loss_before:.4f} -> {fitted.loss_after:.4f})"
    )


def to_json(calibration: Calibration) -> str:
    """The content of `calibration.json`: the calibration, and the digest of its values.

    It has `why_none` only where there is no temperature.
    """
    values = asdict(calibration)
    if calibration.why_none is None:
        del values["why_none"]
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
    """The calibration of an export directory; None where it has none, `UserError` if damaged.

    A temperature that `checked` refuses, of an earlier version, is not used.
    """
    path = export / CALIBRATION_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        digest = content.pop(_DIGEST_KEY, None)
        if digest is not None and digest != _digest(content):
            raise ValueError("its digest is of other values")
        found = Calibration(**content)
        temperature = found.temperature
        known = temperature is not None or isinstance(found.why_none, str)
        if not known or not (temperature is None or _is_positive(temperature)):
            raise ValueError(f"the temperature is {temperature!r}")
        if type(found.num_samples) is not int:
            raise ValueError(f"the number of samples is {found.num_samples!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not contain a calibration ({error}); fit it again with: "
            "python evaluate.py EXPORT --split val --calibrate"
        ) from None
    return checked(found)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def _is_positive(temperature: object) -> bool:
    return isinstance(temperature, float) and 0 < temperature < float("inf")
