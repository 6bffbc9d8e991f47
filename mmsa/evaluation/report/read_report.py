"""Read finished reports, the input of a comparison or of pooled folds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.report.files import METRICS_NAME, read_metrics
from mmsa.evaluation.report.predictions_file import read_predictions
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics

_ATTEMPTS = 5
_WAIT_S = 0.2


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
    """Read the report in `directory`; `UserError` if it is missing or damaged.

    Its files are of one evaluation: while another one replaces them, it waits a little.
    """
    for _ in range(_ATTEMPTS):
        metrics = read_metrics(directory)
        identity = metrics["identity"]
        predictions, groups = read_predictions(directory, identity["label_names"])
        if _belong_together(metrics, predictions):
            return Report(name, directory, identity, predictions, groups)
        time.sleep(_WAIT_S)
    raise UserError(
        f"{directory}: {METRICS_NAME} and the predictions are of different evaluations (another "
        "accuracy or log loss); evaluate again"
    )


def _belong_together(metrics: Mapping[str, Any], predictions: Predictions) -> bool:
    """Whether the predictions have the scores of `metrics`, within what versions round."""
    computed = compute_metrics(predictions)
    return all(
        math.isclose(metrics[score], computed[score], rel_tol=1e-3, abs_tol=1e-6)
        for score in ("num_samples", "accuracy", "loss")
        if score in metrics
    )


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
