"""Calibration: a temperature, fitted on validation, that divides the logits; reliability diagrams.

A temperature changes no prediction, only its confidence (Guo et al., ICML 2017). It is stored in
the export as `calibration.json`; prediction and `predictions.jsonl` use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmsa.calibration import FITTED_ON, TEMPERATURES, Calibration, checked
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import Predictions, losses_of, probabilities, rounded
from mmsa.evaluation.scores.sums import CALIBRATION_BINS, confidence_bins


def fit(predictions: Predictions, *, split: str, shards_digest: str) -> Calibration:
    """Fit the temperature with the lowest log loss; `UserError` for any split but validation.

    The result has no temperature where the split does not determine one (mmsa/calibration.py).
    """
    if split != FITTED_ON:
        raise UserError(
            f"a temperature is fitted on '{FITTED_ON}', never on '{split}': evaluate with "
            f"--split {FITTED_ON}"
        )
    temperature = float(rounded(lowest_loss(predictions)))
    return checked(
        Calibration(
            temperature=temperature,
            fitted_on=split,
            num_samples=len(predictions.keys),
            shards_digest=shards_digest,
            loss_before=float(rounded(_loss(predictions, 1.0))),
            loss_after=float(rounded(_loss(predictions, temperature))),
        )
    )


def lowest_loss(predictions: Predictions) -> float:
    """The temperature with the lowest log loss in the range of the search, however few samples."""
    from scipy.optimize import minimize_scalar

    low, high = map(math.log, TEMPERATURES)
    # Convex in 1/T, so there is no second minimum to end in.
    minimum = minimize_scalar(
        lambda x: _loss(predictions, math.exp(x)), bounds=(low, high), method="bounded"
    )
    return math.exp(minimum.x)


def _loss(predictions: Predictions, temperature: float) -> float:
    return float(losses_of(predictions, temperature).mean())


def reliability(predictions: Predictions, temperature: float = 1.0) -> list[Mapping[str, Any]]:
    """The non-empty bins of a reliability diagram, by increasing confidence.

    Each has its edges `from` and `to`, `num_samples`, the mean `confidence` and the `accuracy`.
    """
    probs = probabilities(predictions.logits, temperature)
    confidence = probs[np.arange(len(probs)), predictions.predicted]
    right = predictions.predicted == predictions.labels
    bins = confidence_bins(confidence)
    return [
        {
            "from": b / CALIBRATION_BINS,
            "to": (b + 1) / CALIBRATION_BINS,
            "num_samples": int((bins == b).sum()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
        }
        for b in np.unique(bins).tolist()
    ]
