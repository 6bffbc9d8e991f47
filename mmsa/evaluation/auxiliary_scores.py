"""How well the auxiliary heads predict the labels of text and image, next to the pair's scores.

N samples of a split, C classes. Each rank keeps what it predicted; at the end the ranks add up
whole numbers, so the scores do not depend on how the samples were divided among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from mmsa.data.manifest import MODALITIES
from mmsa.data.modality_labels import NO_LABEL
from mmsa.evaluation.scores.sums import class_score


class AuxiliaryScores:
    """Collects the predictions of auxiliary heads on this rank, and scores those of all ranks."""

    def __init__(self, modalities: Sequence[str], num_classes: int) -> None:
        """`modalities` are those that have a head."""
        self._modalities, self._num_classes = tuple(modalities), num_classes
        self._predicted: dict[str, list[Tensor]] = {name: [] for name in self._modalities}
        self._labels: list[Tensor] = []

    def add(self, logits: Mapping[str, Tensor], labels: Tensor) -> None:
        """One batch: `logits` (B, C) or (B, 1) by modality; `labels` (B, 2), `modality_labels`."""
        for name in self._modalities:
            of_head = logits[name]
            one_logit = of_head.shape[1] == 1  # of the second class
            # Stays on the device: a copy would wait for the forward pass.
            self._predicted[name].append(
                (of_head[:, 0] > 0).long() if one_logit else of_head.argmax(dim=1)
            )
        self._labels.append(labels)

    def scores(self) -> dict[str, dict[str, float]]:
        """Modality -> `accuracy` and `weighted_f1` on the samples with a label of it; a collective.

        All ranks get the same numbers. A modality that no sample has a label of is left out.
        """
        own = np.stack([self._counts(name) for name in self._modalities])
        counts = np.sum(gather_object([own]), axis=0)  # (heads, 3, C)
        return {
            name: scores_of_counts(of_head)
            for name, of_head in zip(self._modalities, counts, strict=True)
            if of_head[1].any()
        }

    def _counts(self, modality: str) -> NDArray[np.int64]:
        """Hits, labels and predictions of each class on this rank, (3, C)."""
        place = MODALITIES.index(modality)
        labels = _joined([batch[:, place] for batch in self._labels])
        predicted = _joined(self._predicted[modality])
        known = labels != NO_LABEL
        labels, predicted = labels[known], predicted[known]
        chosen = (labels[labels == predicted], labels, predicted)
        return np.stack([np.bincount(each, minlength=self._num_classes) for each in chosen])


def scores_of_counts(counts: NDArray[np.int64]) -> dict[str, float]:
    """`accuracy` and `weighted_f1` of counts (3, C): hits, labels and predictions of each class.

    As scikit-learn's `accuracy_score` and `f1_score(average="weighted", zero_division=0)`.
    """
    hits, support, chosen = counts.astype(np.float64)
    f1 = class_score("f1", hits, support, chosen)
    total: Any = support.sum()
    return {
        "accuracy": float(hits.sum() / total),
        "weighted_f1": float((f1 * support).sum() / total),
    }


def _joined(batches: list[Tensor]) -> NDArray[np.int64]:
    """The batches' rows as one array; a rank may have none."""
    arrays = [batch.cpu().numpy() for batch in batches]
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
