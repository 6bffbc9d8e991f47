"""Every score except the areas as a function of sums over samples, for many resamples at once.

N samples, C classes, B bins, R resamples. Each sample counts once among the samples of its true
class, once among those of its predicted class and, if both are the same, among the hits of that
class. It contributes its log loss, its Brier score and, in the bin of its confidence, correct (1 or
0) minus confidence. The scores are functions of the sums, 3 C + 2 + B numbers, so 10,000 resamples
are one matrix product. No score needs the C x C cells of the confusion matrix, which would be 80 GB
for 1,000 classes and 10,000 resamples. The areas under curves are in `areas.py`.

All numbers are multiples of a power of two, small enough that float64 adds them without rounding:
the sums do not depend on the order of addition, on threads or on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.scores.metrics import Predictions, log_probabilities, row_blocks

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

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
OF_A_CLASS = ("precision", "recall", "f1")  # `f1/CLASS`, ...
_SMALLER_IS_BETTER = frozenset({"loss", "brier", "ece"})


def smaller_is_better(metric: str) -> bool:
    """Whether the smaller of two values of a score is the better one."""
    return metric in _SMALLER_IS_BETTER


NO_CLASS = -1  # among the hits: a sample whose prediction is wrong


@dataclass(frozen=True)
class Summands:
    """What N samples contribute to the sums.

    `labels` and `predicted` (N,) are classes; `numbers` (N, 2 + B): loss, Brier score, bins.
    """

    labels: Places
    predicted: Places
    numbers: Floats
    label_names: tuple[str, ...]

    @property
    def hits(self) -> Places:
        """The class of each sample that is predicted correctly, (N,); `NO_CLASS` of the others."""
        return np.where(self.labels == self.predicted, self.labels, NO_CLASS)

    def part(self, rows: NDArray[np.bool_]) -> Summands:
        """The contributions of the samples in the mask `rows` (N,), unchanged."""
        names = self.label_names
        return Summands(self.labels[rows], self.predicted[rows], self.numbers[rows], names)

    def total(self) -> Sums:
        """The sums over all samples: one resample, in which each sample is once."""
        counts = [
            np.bincount(places[places != NO_CLASS], minlength=len(self.label_names))
            for places in (self.hits, self.labels, self.predicted)
        ]
        hits, support, chosen = (count.astype(np.float64)[None] for count in counts)
        return Sums(hits, support, chosen, self.numbers.sum(axis=0, keepdims=True))


@dataclass(frozen=True)
class Sums:
    """Sums over each of R resamples.

    `hits`, `support` and `chosen` (R, C): samples of each class that are predicted correctly,
    samples of the class, samples predicted as the class. `numbers` (R, 2 + B).
    """

    hits: Floats
    support: Floats
    chosen: Floats
    numbers: Floats


def summands(predictions: Predictions, *, temperature: float = 1.0) -> Summands:
    """What each sample contributes to the sums; `temperature` divides the logits first."""
    labels, predicted = predictions.labels, predictions.predicted
    losses, brier, confidence = (np.empty(len(labels)) for _ in range(3))
    for rows in row_blocks(len(labels), len(predictions.label_names)):
        log_probs = log_probabilities(predictions.logits[rows], temperature)
        within = np.arange(len(log_probs))
        losses[rows] = -log_probs[within, labels[rows]]
        probs = np.exp(log_probs, out=log_probs)
        confidence[rows] = probs[within, predicted[rows]]
        probs[within, labels[rows]] -= 1.0
        brier[rows] = (probs**2).sum(axis=1)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[np.arange(len(labels)), confidence_bins(confidence)] = (predicted == labels) - confidence
    numbers = [_on_grid(losses)[:, None], _on_grid(brier)[:, None], _on_grid(gaps)]
    return Summands(labels, predicted, np.concatenate(numbers, axis=1), predictions.label_names)


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


def overall_scores(sums: Sums) -> dict[str, Floats]:
    """The scores in `OVERALL`, each (R,).

    Scores undefined for lack of samples count as 0, as in `compute_metrics`; balanced accuracy is
    the mean recall of the classes that occur, as in scikit-learn.
    """
    hits, support, chosen = sums.hits, sums.support, sums.chosen  # (R, C)
    totals = support.sum(axis=1)  # (R,)
    per_class = {name: class_score(name, hits, support, chosen) for name in OF_A_CLASS}
    scores: dict[str, Floats] = {"accuracy": hits.sum(axis=1) / totals}
    scores["balanced_accuracy"] = per_class["recall"].sum(axis=1) / (support > 0).sum(axis=1)
    shares = support / totals[:, None]
    for name, values in per_class.items():
        scores[f"macro_{name}"] = values.mean(axis=1)
        scores[f"weighted_{name}"] = (values * shares).sum(axis=1)
    scores["mcc"] = _matthews(hits.sum(axis=1), totals, support, chosen)
    loss, brier, *gaps = sums.numbers.T
    scores["loss"], scores["brier"] = loss / totals, brier / totals
    scores["ece"] = np.abs(gaps).sum(axis=0) / totals
    return {name: scores[name] for name in OVERALL}


def class_score(name: str, hits: Floats, support: Floats, chosen: Floats) -> Floats:
    """`name` is one of `OF_A_CLASS`; of counts of any shape, 0 if undefined for lack of samples."""
    if name == "precision":
        return _ratio(hits, chosen)
    if name == "recall":
        return _ratio(hits, support)
    return _ratio(2 * hits, support + chosen)


def scores_of_sums(sums: Sums, label_names: Sequence[str]) -> dict[str, Floats]:
    """The scores, each (R,): those in `OVERALL`, then those in `OF_A_CLASS` of each class."""
    scores = overall_scores(sums)
    for name in OF_A_CLASS:
        values = class_score(name, sums.hits, sums.support, sums.chosen)
        scores |= {f"{name}/{label}": values[:, i] for i, label in enumerate(label_names)}
    return scores


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _matthews(hits: Floats, totals: Floats, support: Floats, chosen: Floats) -> Floats:
    """Matthews' coefficient for several classes (Gorodkin 2004), 0 if undefined."""
    covariance = hits * totals - (support * chosen).sum(axis=1)
    spread = (totals**2 - (support**2).sum(axis=1)) * (totals**2 - (chosen**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))
