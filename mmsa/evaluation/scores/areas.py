"""Areas under one-vs-rest ROC and precision-recall curves, for many resamples at once.

scikit-learn has both areas for one weighting of the samples; a bootstrap asks for thousands. Here
the samples are sorted once and every resample is a row of counts. Tests hold both to scikit-learn.
N samples, C classes, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ranking:
    """The samples of one class and of the rest, in the order of falling probability."""

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        """`scores` (N,), and which samples are of the class, `positive` (N,)."""
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        # A threshold cannot part equal scores: a point of the curve lies behind the last of them.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._positive = positive[self._order].astype(np.float64)

    def areas(self, counts: Floats) -> tuple[Floats, Floats]:
        """(ROC area, PR area), each (R,), where sample n stands `counts[r, n]` times in resample r.

        The PR area is the average precision: the mean precision over the recall that each threshold
        adds, without interpolation. Both are NaN where the class or the rest does not occur.
        """
        ranked = counts[:, self._order]  # (R, N)
        steps = ranked * self._positive
        hits, taken = np.cumsum(steps, axis=1), np.cumsum(ranked, axis=1)
        if len(self._ends) < len(self._order):
            hits, taken = hits[:, self._ends], taken[:, self._ends]  # (R, thresholds)
            steps = np.diff(hits, axis=1, prepend=0.0)
            ranked = np.diff(taken, axis=1, prepend=0.0)
        num_positive, num_negative = hits[:, -1].copy(), taken[:, -1] - hits[:, -1]
        np.maximum(taken, 1.0, out=taken)  # only before the first sample that was drawn
        with np.errstate(invalid="ignore", divide="ignore"):
            pr = np.einsum("rt,rt->r", steps, hits / taken) / num_positive
            # Each negative stands below the positives taken so far, and level with half of its tie.
            hits -= steps / 2
            roc = np.einsum("rt,rt->r", ranked - steps, hits) / (num_positive * num_negative)
        undefined = (num_positive == 0) | (num_negative == 0)
        return np.where(undefined, np.nan, roc), np.where(undefined, np.nan, pr)


def rankings(probs: Floats, labels: NDArray[np.int64]) -> list[Ranking]:
    """One-vs-rest rankings of the C classes by their probabilities (N, C)."""
    return [Ranking(probs[:, c], labels == c) for c in range(probs.shape[1])]


def area_scores(
    ranked: list[Ranking], label_names: tuple[str, ...], counts: Floats
) -> dict[str, Floats]:
    """`roc_auc` and `pr_auc`, the means over the classes that have one, and one for each class."""
    pairs = [ranking.areas(counts) for ranking in ranked]
    scores: dict[str, Floats] = {}
    for place, name in enumerate(("roc_auc", "pr_auc")):
        table = np.stack([pair[place] for pair in pairs], axis=1)  # (R, C)
        defined = ~np.isnan(table)
        total = np.where(defined, table, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            scores[name] = total / defined.sum(axis=1)
        scores |= {f"{name}/{label}": table[:, c] for c, label in enumerate(label_names)}
    return scores
