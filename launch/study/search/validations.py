"""What a run has written of its validations so far: the lines of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmsa.evaluation.scores.sums import smaller_is_better
from mmsa.foundation.parsing import read_json_objects
from mmsa.training.tracking import METRICS_NAME


class Validation(NamedTuple):
    """One validation; `value` is the searched metric, `selects` that of `train.select_by`."""

    step: int
    value: float
    selects: float


def read_validations(run_dir: Path, metric: str, select_by: str) -> list[Validation]:
    """The validations of a run, oldest first; a torn last line is left out.

    A value that is missing is NaN.
    """
    found = []
    # Of hundreds of lines most are of training.
    for content in read_json_objects(run_dir / METRICS_NAME, with_text='"validation"'):
        if isinstance(content.get("step"), int):
            values = (_number(content.get(name)) for name in (metric, select_by))
            found.append(Validation(content["step"], *values))
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def value_of_best(validations: Sequence[Validation], select_by: str) -> float:
    """The metric of the model that the run exports: its best validation by `train.select_by`.

    NaN without one. The first of equals, as the run itself chooses.
    """
    sign = -1 if smaller_is_better(select_by) else 1
    known = [one for one in validations if not math.isnan(one.selects)]
    return max(known, key=lambda one: sign * one.selects).value if known else math.nan
