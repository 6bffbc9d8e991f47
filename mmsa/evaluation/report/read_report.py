"""Read finished reports, the input of a comparison or of pooled folds."""

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
class Report:
    """A finished report: its identity, its predictions and their duplicate groups (N,)."""

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


def read_report(directory: Path, name: str) -> Report:
    """Read the report in `directory`; `UserError` if it is missing or damaged."""
    identity = read_metrics(directory)["identity"]
    predictions, groups = read_predictions(directory, identity["label_names"])
    return Report(name, directory, identity, predictions, groups)


def report_matches(directory: Path, identity: Mapping[str, Any]) -> bool:
    """Whether an evaluation of `identity` would reproduce the report in `directory`.

    Never true for code with uncommitted changes, whose version does not identify it.
    """
    if not is_report(directory) or "dirty" in str(identity["code_version"]):
        return False
    try:
        reported = read_metrics(directory)["identity"]
    except UserError:
        return False
    return all(reported.get(name) == value for name, value in identity.items())
