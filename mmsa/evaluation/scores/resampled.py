"""The scores of resamples, of one or more sets of predictions at once.

C classes, R resamples. Sums are made and scored in chunks of resamples. What is kept for each
resample are the scores over all classes, and three integers per class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.scores.bootstrap import Bootstrap
from mmsa.evaluation.scores.sums import (
    OF_A_CLASS,
    OVERALL,
    Places,
    Summands,
    Sums,
    class_score,
    overall_scores,
)

Floats = NDArray[np.float64]


class Resampled(Mapping[str, Floats]):
    """Scores over R resamples by flat name, each (R,), some of them computed when they are read.

    Those of 1,000 classes and 10,000 resamples are 240 MB, and are needed one at a time.
    """

    def __init__(
        self, ready: Mapping[str, Floats], when_read: Mapping[str, Callable[[], Floats]]
    ) -> None:
        self._ready, self._when_read = ready, when_read

    def with_ready(self, further: Mapping[str, Floats]) -> Resampled:
        """These scores, and those in `further` (the areas)."""
        return Resampled({**self._ready, **further}, self._when_read)

    def __getitem__(self, name: str) -> Floats:
        return self._ready[name] if name in self._ready else self._when_read[name]()

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self._ready, self._when_read)

    def __len__(self) -> int:
        return len(self._ready) + len(self._when_read)


def resampled_scores(
    several: Sequence[Summands], bootstrap: Bootstrap, *, with_classes: int | None = None
) -> list[Resampled]:
    """The scores of several sets of predictions of the same samples, all on the same resamples.

    The first `with_classes` sets (default: all) also have the scores in `OF_A_CLASS`. These need 4
    bytes for each resample, class and count: hits, samples, predictions. Sets share equal counts.
    """
    num_classes, width = len(several[0].label_names), several[0].numbers.shape[1]
    places, of_set = _distinct([(one.hits, one.labels, one.predicted) for one in several])
    detailed = of_set[:with_classes]
    kept = {
        place: np.empty((num_classes, bootstrap.resamples), dtype=np.uint32)
        for place in {place for own in detailed for place in own}
    }
    overall: list[list[dict[str, Floats]]] = [[] for _ in several]
    numbers = np.concatenate([one.numbers for one in several], axis=1)
    start = 0
    for sums, counts in bootstrap.sums(numbers, places, num_classes):
        for i, own in enumerate(of_set):
            hits, support, chosen = (counts[place] for place in own)
            drawn = Sums(hits, support, chosen, sums[:, i * width : (i + 1) * width])
            overall[i].append(overall_scores(drawn))
        for place, whole in kept.items():
            whole[:, start : start + len(sums)] = counts[place].T
        start += len(sums)
    of_classes = [
        _scores_of_classes([kept[place] for place in own], several[0].label_names)
        for own in detailed
    ] + [{}] * (len(several) - len(detailed))
    return [
        Resampled({name: np.concatenate([p[name] for p in parts]) for name in OVERALL}, when_read)
        for parts, when_read in zip(overall, of_classes, strict=True)
    ]


def _distinct(sets: Sequence[Sequence[Places]]) -> tuple[list[Places], list[list[int]]]:
    """The distinct arrays of all sets, and for each set the places of its arrays among them.

    All models have the same true classes, and one model at two temperatures the same predictions.
    """
    places: dict[bytes, int] = {}
    found: list[Places] = []
    of_set = []
    for one in sets:
        for array in one:
            if places.setdefault(array.tobytes(), len(found)) == len(found):
                found.append(array)
        of_set.append([places[array.tobytes()] for array in one])
    return found, of_set


def _scores_of_classes(
    counts: Sequence[NDArray[np.uint32]], label_names: Sequence[str]
) -> dict[str, Callable[[], Floats]]:
    """Flat name -> its computation from the counts (C, R): hits, support, chosen."""

    def computed(name: str, c: int) -> Floats:
        return class_score(name, *(count[c].astype(np.float64) for count in counts))

    return {
        f"{name}/{label}": partial(computed, name, c)
        for name in OF_A_CLASS
        for c, label in enumerate(label_names)
    }
