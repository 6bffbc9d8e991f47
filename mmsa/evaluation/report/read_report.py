"""Finished reports: what a comparison and a pool of folds are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.report.files import METRICS_NAME, read_metrics
from mmsa.evaluation.report.predictions_file import read_predictions
from mmsa.evaluation.scores.metrics import Predictions


@dataclass(frozen=True)
class Reported:
    """One report: what it is a report on, its predictions and their duplicate groups (N,)."""

    name: str
    directory: Path
    identity: dict[str, Any]
    predictions: Predictions
    groups: NDArray[np.uint64]

    @property
    def seed(self) -> Any:
        return self.identity.get("seed")


def is_report(directory: Path) -> bool:
    return (directory / METRICS_NAME).is_file()


def read_report(directory: Path, name: str) -> Reported:
    """The report in `directory`; `UserError` where it is none or is damaged."""
    identity = read_metrics(directory)["identity"]
    predictions, groups = read_predictions(directory, identity["label_names"])
    return Reported(name, directory, identity, predictions, groups)


def serves(directory: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the report in `directory` is the one that an evaluation of `identity` would give.

    A report of code that was being changed serves nobody.
    """
    if not is_report(directory) or "dirty" in str(identity["code_version"]):
        return False
    try:
        found = read_metrics(directory)["identity"]
    except UserError:
        return False
    return all(found.get(name) == value for name, value in identity.items())
