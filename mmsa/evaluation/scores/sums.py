"""Every score except the areas as a function of sums over samples, for many resamples at once.

N samples, C classes, K summands, R resamples. Each sample contributes K numbers: a one in its cell
of the confusion matrix, its log loss, its Brier score and, in the bin of its confidence, correct (1
or 0) minus confidence. The scores are functions of their sums, so 10,000 resamples are one matrix
product. The areas under curves are in `areas.py`.

All numbers are multiples of a power of two, small enough that float64 adds them without rounding:
the sums do not depend on the order of addition, on threads or on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.scores.metrics import Predictions, log_probabilities

Floats = NDArray[np.float64]

CALIBRATION_BINS = 15  # of equal width in confidence, as in Guo et al. (ICML 2017)
_MANTISSA_BITS = 52

# Flat names of the scores over all classes, in the order of reports.
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_precision",
    "weighted_recall",
    "weighted_f1",
    "mcc",
    "loss",
    "brier",
    "ece",
)
SMALLER_IS_BETTER = frozenset({"loss", "brier", "ece"})


@dataclass(frozen=True)
class Summands:
    """Contributions of the samples, `values` (N, K). Columns: C x C cells, loss, Brier, bins."""

    values: Floats
    label_names: tuple[str, ...]


def summands(predictions: Predictions, *, temperature: float = 1.0) -> Summands:
    """What each sample contributes to the sums; `temperature` divides the logits first."""
    num_samples, num_classes = len(predictions.labels), len(predictions.label_names)
    rows = np.arange(num_samples)
    log_probs = log_probabilities(np.asarray(predictions.logits, dtype=np.float64) / temperature)
    probs = np.exp(log_probs)  # (N, C)
    predicted = predictions.predicted
    cells = np.zeros((num_samples, num_classes * num_classes))
    cells[rows, predictions.labels * num_classes + predicted] = 1.0
    truth = np.zeros_like(probs)
    truth[rows, predictions.labels] = 1.0
    losses = -log_probs[rows, predictions.labels]  # (N,)
    brier = ((probs - truth) ** 2).sum(axis=1)  # (N,)
    confidence = probs[rows, predicted]
    gaps = np.zeros((num_samples, CALIBRATION_BINS))
    gaps[rows, confidence_bins(confidence)] = (predicted == predictions.labels) - confidence
    columns = [cells, _on_grid(losses)[:, None], _on_grid(brier)[:, None], _on_grid(gaps)]
    return Summands(np.concatenate(columns, axis=1), predictions.label_names)


def confidence_bins(confidence: Floats) -> NDArray[np.int64]:
    """The bin of each confidence (N,): bin b is above b/B and up to (b + 1)/B."""
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    return np.clip(bins, 0, CALIBRATION_BINS - 1)


def _on_grid(values: Floats) -> Floats:
    """`values` rounded to multiples of a power of two, finer than anything that is reported.

    The mantissa has room for 4 N of the largest value: a resample adds about N numbers, and a group
    that is drawn often adds more.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return values
    bits = _MANTISSA_BITS - math.ceil(math.log2(4 * len(values) * largest))
    return np.asarray(np.ldexp(np.rint(np.ldexp(values, bits)), -bits))


def scores_of_sums(sums: Floats, label_names: Sequence[str]) -> dict[str, Floats]:
    """The scores, each (R,), of `sums` (R, K): those in `OVERALL`, and three per class.

    Scores undefined for lack of samples count as 0, as in `compute_metrics`; balanced accuracy is
    the mean recall of the classes that occur, as in scikit-learn.
    """
    num_classes = len(label_names)
    cells = sums[:, : num_classes**2].reshape(-1, num_classes, num_classes)  # (R, true, predicted)
    totals = cells.sum(axis=(1, 2))  # (R,)
    hits = np.diagonal(cells, axis1=1, axis2=2)  # (R, C)
    support, chosen = cells.sum(axis=2), cells.sum(axis=1)  # (R, C)
    per_class = {
        "precision": _ratio(hits, chosen),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + chosen),
    }
    scores: dict[str, Floats] = {"accuracy": hits.sum(axis=1) / totals}
    scores["balanced_accuracy"] = per_class["recall"].sum(axis=1) / (support > 0).sum(axis=1)
    shares = support / totals[:, None]
    for name, values in per_class.items():
        scores[f"macro_{name}"] = values.mean(axis=1)
        scores[f"weighted_{name}"] = (values * shares).sum(axis=1)
    scores["mcc"] = _matthews(hits.sum(axis=1), totals, support, chosen)
    loss, brier, *gaps = sums[:, num_classes**2 :].T
    scores["loss"], scores["brier"] = loss / totals, brier / totals
    scores["ece"] = np.abs(gaps).sum(axis=0) / totals
    ordered = {name: scores[name] for name in OVERALL}
    for name, values in per_class.items():
        ordered |= {f"{name}/{label}": values[:, i] for i, label in enumerate(label_names)}
    return ordered


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _matthews(hits: Floats, totals: Floats, support: Floats, chosen: Floats) -> Floats:
    """Matthews' coefficient for several classes (Gorodkin 2004), 0 if undefined."""
    covariance = hits * totals - (support * chosen).sum(axis=1)
    spread = (totals**2 - (support**2).sum(axis=1)) * (totals**2 - (chosen**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))
