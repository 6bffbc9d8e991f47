"""Areas under one-vs-rest ROC and precision-recall curves, for many resamples at once.

scikit-learn computes both areas for one weighting of the samples; a bootstrap needs thousands. Here
the samples are sorted once, and each resample is a row of counts. Tests compare with scikit-learn.
N samples, C classes, R resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_RANKINGS_BYTES = 64 << 20  # rankings in memory at once


class Ranking:
    """The samples of one class and of the rest, in order of decreasing probability."""

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        """`scores` (N,) are probabilities; `positive` (N,) marks the samples of the class."""
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._positives = np.flatnonzero(positive[self._order])  # places in the order, (P,)
        # A threshold cannot separate equal scores. For each positive: the number of samples before
        # those with its score, and up to the last of them; then the number of positives.
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        tie = np.searchsorted(starts, self._positives, side="right") - 1
        self._before, self._down_to = starts[tie], np.append(starts[1:], len(ranked))[tie]
        self._positives_before = np.searchsorted(self._positives, self._before)
        self._positives_down_to = np.searchsorted(self._positives, self._down_to)
        self._ties = bool((self._down_to > self._before + 1).any())

    @property
    def num_bytes(self) -> int:
        """Nearly all of its memory: one place per sample."""
        return self._order.nbytes

    def areas(self, counts: Counts) -> tuple[Floats, Floats]:
        """(ROC area, PR area), each (R,), where sample n is in resample r `counts[r, n]` times.

        The PR area is the average precision: the mean precision over the recall that each threshold
        adds, without interpolation. Both are NaN if the class or the rest does not occur.
        """
        ranked = np.take(counts, self._order, axis=1)  # (R, N)
        drawn = np.take(ranked, self._positives, axis=1)  # (R, P)
        all_above, hits = _sums(ranked), _sums(drawn)  # from none to all: (R, N + 1), (R, P + 1)
        num_positive, num_negative = hits[:, -1], all_above[:, -1] - hits[:, -1]
        taken = np.take(all_above, self._down_to, axis=1)  # at the threshold, (R, P)
        # Twice the negatives above each positive; those with the same score count half.
        if self._ties:
            above = np.take(all_above, self._before, axis=1)
            above -= np.take(hits, self._positives_before, axis=1)
            hits = np.take(hits, self._positives_down_to, axis=1)
            above += taken - hits
        else:
            hits = hits[:, 1:]
            above = 2 * (taken - hits)
        pairs = np.asarray(num_positive, dtype=np.float64) * num_negative
        with np.errstate(invalid="ignore", divide="ignore"):
            # `taken` is 0 only before the first drawn sample, where `drawn` is 0 too.
            pr = np.einsum("rp,rp->r", drawn, hits / np.maximum(taken, 1)) / num_positive
            # Integers below 2^53, which float64 adds exactly.
            roc = (pairs - np.einsum("rp,rp->r", drawn, above, dtype=np.float64) / 2) / pairs
        undefined = pairs == 0
        return np.where(undefined, np.nan, roc), np.where(undefined, np.nan, pr)


def _sums(counts: Counts) -> Counts:
    """Running sums along each row, from 0: (R, K + 1)."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), dtype=counts.dtype)
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums


def rankings(probs: Floats, labels: NDArray[np.int64]) -> Iterator[Ranking]:
    """One-vs-rest rankings of the C classes by their probabilities (N, C), made when needed."""
    return (Ranking(probs[:, c], labels == c) for c in range(probs.shape[1]))


def area_scores(
    ranked: Iterable[Ranking],
    label_names: Sequence[str],
    resamples: Callable[[], Iterable[Counts]],
) -> list[dict[str, Floats]]:
    """The areas (R,) of one or more models, each with C of the rankings in `ranked`.

    `roc_auc` and `pr_auc` are means over the classes where they are defined; the areas of each
    class follow. `resamples` yields the counts of the samples in chunks (R', N). It is called once
    for each block of rankings, because those of many classes do not fit in memory together.
    """
    pending, columns = iter(ranked), list[tuple[Floats, Floats]]()
    while first := next(pending, None):
        at_once = max(1, _RANKINGS_BYTES // first.num_bytes)
        block = [first, *itertools.islice(pending, at_once - 1)]
        found = [[one.areas(counts) for one in block] for counts in resamples()]
        columns += [
            (np.concatenate([roc for roc, _ in parts]), np.concatenate([pr for _, pr in parts]))
            for parts in zip(*found, strict=True)
        ]
    size = len(label_names)
    return [
        _means(columns[start : start + size], label_names) for start in range(0, len(columns), size)
    ]


def _means(
    columns: Sequence[tuple[Floats, Floats]], label_names: Sequence[str]
) -> dict[str, Floats]:
    scores: dict[str, Floats] = {}
    for place, name in enumerate(("roc_auc", "pr_auc")):
        table = np.stack([pair[place] for pair in columns], axis=1)  # (R, C)
        defined = ~np.isnan(table)
        total = np.where(defined, table, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            scores[name] = total / defined.sum(axis=1)
        scores |= {f"{name}/{label}": table[:, c] for c, label in enumerate(label_names)}
    return scores
