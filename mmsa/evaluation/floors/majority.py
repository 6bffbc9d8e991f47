"""The majority class: what is right without reading anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmsa.evaluation.scores.metrics import Predictions


def majority_predictions(
    train_labels: Sequence[int], test_labels: Sequence[int], label_names: Sequence[str]
) -> Predictions:
    """The most frequent class of train for every sample; of equally frequent ones the first.

    The logits are the logarithms of the class shares of train, each class counted once more than
    it occurs, so that the loss is finite too.
    """
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=len(label_names)) + 1
    logits = np.tile(np.log(counts / counts.sum()), (len(test_labels), 1))  # (N, C)
    return numbered(test_labels, logits, label_names)


def numbered(labels: Sequence[int], logits: Any, label_names: Sequence[str]) -> Predictions:
    """Predictions of a floor, whose samples go by their row alone."""
    keys = [f"{row:012d}" for row in range(len(labels))]
    return Predictions(keys, np.asarray(labels, dtype=np.int64), logits, tuple(label_names))
