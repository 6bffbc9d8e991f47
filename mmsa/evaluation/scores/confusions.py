"""What a confusion matrix says, in a form that can be read however many classes there are.

C classes; a matrix is (C, C) counts, rows true, columns predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]

RATES_UP_TO = 10  # classes; with more, a cell has only room for its count
SHOWN_UP_TO = 40  # classes; of more, only some are shown one by one
SHOWN = 30  # of more than SHOWN_UP_TO
PAIRS = 15
_NAMED = 5  # classes in a sentence


@dataclass(frozen=True)
class Pair:
    """`count` samples of the class `true` were predicted as `predicted`: `share` of the class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class ShownMatrix:
    """A matrix that can be drawn: `counts` (K, K) of the rows and columns `names`.

    If `num_others` is not 0, the last row and column are that many other classes together, so that
    their cell on the diagonal counts right answers and confusions among them.
    """

    counts: Counts
    names: tuple[str, ...]
    num_others: int = 0

    @property
    def note(self) -> str:
        """What is not shown one by one, as a sentence; empty if nothing is."""
        if not self.num_others:
            return ""
        return (
            f"The {len(self.names) - 1} of {len(self.names) - 1 + self.num_others:,} classes with "
            "the most errors. The last row and column are all others together: their common cell "
            "counts right answers and confusions among them."
        )


def errors_of_classes(matrix: Counts) -> Counts:
    """(C,): samples of the class predicted as another, and of others predicted as the class."""
    return np.asarray(matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diagonal(matrix))


def classes_with_most_errors(matrix: Counts, limit: int) -> list[int]:
    """Up to `limit` classes in their order; of equal errors those with more samples."""
    order = np.lexsort((-matrix.sum(axis=1), -errors_of_classes(matrix)))  # stable
    return sorted(order[:limit].tolist())


def shown_matrix(confusion_matrix: ArrayLike, label_names: Sequence[str]) -> ShownMatrix:
    """All classes up to `SHOWN_UP_TO`, else the `SHOWN` with most errors and the others as one."""
    matrix = np.asarray(confusion_matrix, dtype=np.int64)
    if len(matrix) <= SHOWN_UP_TO:
        return ShownMatrix(matrix, tuple(label_names))
    kept = classes_with_most_errors(matrix, SHOWN)
    num_others = len(matrix) - len(kept)
    place = np.full(len(matrix), len(kept))
    place[kept] = np.arange(len(kept))
    counts = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(counts, (place[:, None], place[None, :]), matrix)
    names = [label_names[c] for c in kept]
    return ShownMatrix(counts, (*names, f"{num_others:,} others"), num_others)


def most_confused(
    confusion_matrix: ArrayLike, label_names: Sequence[str], limit: int = PAIRS
) -> list[Pair]:
    """The pairs of classes with the most errors, most first; of equal counts the first classes."""
    matrix = np.array(confusion_matrix, dtype=np.int64)
    support = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    cells = np.argsort(-matrix, axis=None, kind="stable")[:limit]
    pairs = []
    for true, predicted in zip(*np.unravel_index(cells, matrix.shape), strict=True):
        count = int(matrix[true, predicted])
        if count:
            share = count / int(support[true])
            pairs.append(Pair(label_names[true], label_names[predicted], count, share))
    return pairs


def class_cautions(confusion_matrix: ArrayLike, label_names: Sequence[str]) -> list[str]:
    """Sentences about classes that do not occur in the samples, or are never predicted."""
    matrix = np.asarray(confusion_matrix, dtype=np.int64)
    occurs, predicted = matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0
    cautions = []
    absent = [name for name, found in zip(label_names, occurs, strict=True) if not found]
    if absent:
        them = "it" if len(absent) == 1 else "them"
        cautions.append(
            f"no sample of this split has the label {_listed(absent)}: precision, recall and F1 of "
            f"{them} count as 0, in the macro means too"
        )
    never = [
        name
        for name, here, found in zip(label_names, occurs, predicted, strict=True)
        if here and not found
    ]
    if never:
        it = "its" if len(never) == 1 else "their"
        cautions.append(
            f"the model never predicts {_listed(never)} on this split: {it} recall and F1 are 0"
        )
    return cautions


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
