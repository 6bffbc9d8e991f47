"""From logits and labels to metrics: pure functions in float64, the same at any world size.

N samples, C classes. Two classes may share one logit, (N, 1), that of the second class. The metrics
are scikit-learn's; the order (by key), the loss and the rounding are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmsa.errors import UserError
from mmsa.foundation.near_names import did_you_mean

_BLOCK = 1 << 20  # cells of (N, C) that are computed at once: 8 MiB an array
SIGNIFICANT_DIGITS = 6  # in files; float64 sums differ at most in the 15th

# Names for `train.select_by`; more is better for all of them except `loss`.
METRIC_NAMES: tuple[str, ...] = (
    "weighted_f1",
    "macro_f1",
    "accuracy",
    "weighted_precision",
    "weighted_recall",
    "macro_precision",
    "macro_recall",
    "loss",
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per sample of a split, sorted by key.

    `labels` (N,) int64 are indices into `label_names` (C names); `logits` is (N, C) float32, or
    (N, 1) for two classes with one logit. The arrays are read-only copies.

    Raises `UserError`, with the key, for a duplicate key or logits that are not finite, and if
    there is no sample; `ValueError` (a mistake of the caller) for anything else.
    """

    keys: list[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if np.asarray(self.labels).dtype.kind not in "iu" and len(self.keys):
            raise ValueError(f"labels are {np.asarray(self.labels).dtype}; expected integers")
        object.__setattr__(self, "keys", list(self.keys))
        object.__setattr__(self, "label_names", tuple(self.label_names))
        for name, dtype in (("labels", np.int64), ("logits", np.float32)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        self._check_shapes()
        self._check_rows()

    @classmethod
    def by_key(
        cls,
        keys: Sequence[str],
        labels: ArrayLike,
        logits: ArrayLike,
        label_names: Sequence[str],
    ) -> Predictions:
        """From rows in any order, which are sorted by key; raises as the class does."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return cls(
            [keys[row] for row in order],
            np.asarray(labels)[order],
            np.asarray(logits, dtype=np.float32)[order],
            tuple(label_names),
        )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The predicted labels, (N,): the largest logit, the first class of equal ones."""
        if self.logits.shape[1] == 1:
            return (self.logits[:, 0] > 0).astype(np.int64)
        return self.logits.argmax(axis=1).astype(np.int64)

    def _check_shapes(self) -> None:
        num_samples, num_classes = len(self.keys), len(self.label_names)
        if num_samples == 0:
            raise UserError("there are no predictions to report on: the split has no samples")
        if num_classes < 2 or len(set(self.label_names)) != num_classes:
            raise ValueError(f"label names {self.label_names}: expected at least two distinct ones")
        if self.labels.shape != (num_samples,):
            raise ValueError(f"labels are {self.labels.shape}; expected ({num_samples},)")
        widths = {num_classes, 1} if num_classes == 2 else {num_classes}
        if self.logits.ndim != 2 or self.logits.shape not in {(num_samples, w) for w in widths}:
            raise ValueError(
                f"logits are {self.logits.shape}; expected ({num_samples}, {num_classes}) for the "
                f"classes {', '.join(self.label_names)}"
            )

    def _check_rows(self) -> None:
        for before, after in zip(self.keys, self.keys[1:], strict=False):
            if before == after:
                raise UserError(
                    f"the key '{after}' occurs twice in the predictions; each sample must count "
                    "once. Pack the shards again if it occurs twice in them"
                )
            if before > after:
                raise ValueError(f"keys are not sorted: '{after}' follows '{before}'")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.label_names)))
        if len(wrong):
            raise ValueError(
                f"label {self.labels[wrong[0]]} of '{self.keys[wrong[0]]}'; expected 0 to "
                f"{len(self.label_names) - 1}"
            )
        broken = np.flatnonzero(~np.isfinite(self.logits).all(axis=1))
        if len(broken):
            raise UserError(
                f"{len(broken)} of {len(self.keys)} samples have logits that are not finite, "
                f"the first is '{self.keys[broken[0]]}'. The model has diverged or its "
                "precision is too low: take an earlier checkpoint, lower the learning rates, or "
                "use bf16 or full precision in place of fp16"
            )


def row_blocks(num_rows: int, num_classes: int) -> Iterator[slice]:
    """Slices that together are all rows, each of at most `_BLOCK` cells of (N, C), or one row."""
    rows = max(1, _BLOCK // num_classes)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, (N, C) float64, from logits (N, C) or (N, 1).

    `temperature` divides the logits first. Numerically stable: never takes the exponential of a
    large number. Computed in blocks of rows, so that little more than the result is in memory.
    """
    given = np.asarray(logits)
    result = np.empty((len(given), max(2, given.shape[1])))
    for rows in row_blocks(*result.shape):
        result[rows] = _block_of_log_probabilities(given[rows].astype(np.float64) / temperature)
    return result


def _block_of_log_probabilities(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    if wide.shape[1] == 1:
        # One logit z is the log-odds of the second class: log(1 - sigmoid(z)), log(sigmoid(z)).
        return np.concatenate([-np.logaddexp(0.0, wide), -np.logaddexp(0.0, -wide)], axis=1)
    shifted = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, C) float64 from logits (N, C) by softmax, or (N, 1) by the sigmoid pair.

    `temperature` divides the logits first.
    """
    found = log_probabilities(logits, temperature)
    return np.exp(found, out=found)


def losses_of(predictions: Predictions, temperature: float = 1.0) -> NDArray[np.float64]:
    """The log loss of each sample, (N,), in nats."""
    losses = np.empty(len(predictions.labels))
    for rows in row_blocks(len(losses), len(predictions.label_names)):
        labels = predictions.labels[rows]
        found = log_probabilities(predictions.logits[rows], temperature)
        losses[rows] = -found[np.arange(len(labels)), labels]
    return losses


def compute_metrics(
    predictions: Predictions, *, weights: Sequence[float] | NDArray[np.floating] | None = None
) -> dict[str, Any]:
    """All metrics of a report, as plain Python numbers in a fixed order of keys.

    `num_samples`; `loss`, the mean cross-entropy in nats (of one logit: binary cross-entropy)
    without class weights or label smoothing; `accuracy`; `macro` and `weighted`, each precision,
    recall and f1 (means over classes, plain and weighted by support); `per_class` by label name,
    these three and `support`; `confusion_matrix`, rows true, columns predicted. Metrics undefined
    for lack of samples count as 0, in the macro mean too (scikit-learn, zero_division=0).

    With class `weights` (C,) there is also `class_weighted_loss`: the sum of the weighted losses
    divided by N, as in training (docs/architecture.md).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    true, predicted = predictions.labels, predictions.predicted
    labels = list(range(len(predictions.label_names)))
    settings: dict[str, Any] = {"labels": labels, "zero_division": 0}
    per_class = precision_recall_fscore_support(true, predicted, **settings)
    metrics: dict[str, Any] = {"num_samples": len(true)}
    metrics |= _losses(predictions, weights)
    metrics["accuracy"] = int((true == predicted).sum()) / len(true)
    for average in ("macro", "weighted"):
        means = precision_recall_fscore_support(true, predicted, average=average, **settings)
        metrics[average] = _named(*means[:3])
    metrics["per_class"] = {
        name: _named(*row[:3]) | {"support": int(row[3])}
        for name, row in zip(predictions.label_names, zip(*per_class, strict=True), strict=True)
    }
    metrics["confusion_matrix"] = confusion_matrix(true, predicted, labels=labels).tolist()
    return metrics


def _losses(
    predictions: Predictions, weights: Sequence[float] | NDArray[np.floating] | None
) -> dict[str, float]:
    losses = losses_of(predictions)  # (N,)
    # fsum rounds once, so the sum does not depend on how numpy was built.
    named = {"loss": math.fsum(losses) / len(losses)}
    if weights is not None:
        per_class = np.asarray(weights, dtype=np.float64)
        if per_class.shape != (len(predictions.label_names),):
            raise ValueError(
                f"class weights are {per_class.shape}; expected ({len(predictions.label_names)},)"
            )
        named["class_weighted_loss"] = math.fsum(losses * per_class[predictions.labels]) / len(
            losses
        )
    return named


def _named(precision: float, recall: float, f1: float) -> dict[str, float]:
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of `compute_metrics` by flat name, for TensorBoard and `metrics.jsonl`.

    `loss`, `accuracy`, `macro_f1`, `weighted_recall`, ..., and per class `f1/negative`, ... Of
    auxiliary heads, whose scores may be under `auxiliary` by modality: `auxiliary_text_accuracy`.
    """
    flat = {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}
    for average in ("macro", "weighted"):
        flat |= {f"{average}_{name}": value for name, value in metrics[average].items()}
    for class_name, values in metrics["per_class"].items():
        flat |= {f"{name}/{class_name}": values[name] for name in ("precision", "recall", "f1")}
    for modality, scores in metrics.get("auxiliary", {}).items():
        flat |= {f"auxiliary_{modality}_{name}": value for name, value in scores.items()}
    return flat


def metric_problem(name: str) -> str | None:
    """Why `name` cannot select the best export, or None if it can."""
    if name in METRIC_NAMES:
        return None
    hint = did_you_mean(name, METRIC_NAMES) or f"known: {', '.join(METRIC_NAMES)}"
    return f"unknown metric '{name}'; {hint}"


def selection_value(metrics: Mapping[str, Any], name: str) -> float:
    """The value that selects the best export: more is better, so `loss` is negated.

    Raises `UserError` for a name that `metric_problem` rejects.
    """
    problem = metric_problem(name)
    if problem:
        raise UserError(f"train.select_by: {problem}")
    value = flat_metrics(metrics)[name]
    return -value if name == "loss" else value


def rounded(value: Any) -> Any:
    """`value` with all floats, at any depth, rounded to 6 digits; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{SIGNIFICANT_DIGITS}g}")
    return value
