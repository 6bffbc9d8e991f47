"""Percentile bootstrap over duplicate groups, seeded: what a score would be on other such samples.

Duplicates are not independent, so whole groups are drawn: G of the G groups with replacement, and a
group brings all its samples. Two models that are resampled with the same seed over the same samples
see the same resamples, so their scores can be subtracted pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
AREA_RESAMPLES = 2_000
SEED = 0
_CHUNK_BYTES = 32 << 20  # of counts for a matrix product
_COUNTED_AT_ONCE = 1 << 15  # groups: few calls for small splits, counters in a cache for large
_CACHED_BYTES = 2 << 20  # of counts that are sorted and added up, which is quicker in a cache


@dataclass(frozen=True)
class Bootstrap:
    """The resamples of N samples: `groups` (N,) numbers each sample's group from 0 to G - 1."""

    groups: NDArray[np.int64]
    num_groups: int
    resamples: int = RESAMPLES
    area_resamples: int = AREA_RESAMPLES
    seed: int = SEED

    @classmethod
    def of(cls, groups: ArrayLike, **settings: int) -> Bootstrap:
        """Of any group ids (N,); the samples must stand in a fixed order, that of their keys."""
        _, first, codes = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        return cls(codes.reshape(-1).astype(np.int64), len(first), **settings)

    def counts(
        self, resamples: int, chunk_bytes: int = _CHUNK_BYTES, dtype: Any = np.float64
    ) -> Iterator[NDArray[Any]]:
        """How often each group is drawn, chunks of (R', G); a row does not depend on the chunks."""
        random = np.random.default_rng(self.seed)
        rows = max(1, chunk_bytes // (8 * self.num_groups))
        for start in range(0, resamples, rows):
            chunk = np.empty((min(rows, resamples - start), self.num_groups), dtype)
            step = max(1, _COUNTED_AT_ONCE // self.num_groups)
            for first in range(0, len(chunk), step):
                chunk[first : first + step] = self._count(random, len(chunk[first : first + step]))
            yield chunk

    def _count(self, random: np.random.Generator, rows: int) -> NDArray[np.int64]:
        """Draws of `rows` resamples, counted: (rows, G)."""
        shape = (rows, self.num_groups)
        drawn = random.integers(0, self.num_groups, shape, dtype=np.uint32)
        places = drawn + np.arange(rows)[:, None] * self.num_groups
        counted = np.bincount(places.reshape(-1), minlength=rows * self.num_groups)
        return counted.reshape(shape)

    def sums(self, values: Floats) -> Floats:
        """The sums (R, K) over each resample of `values` (N, K), what each sample adds."""
        # Equal columns are added up once: bins without samples, cells of one model at two
        # temperatures.
        distinct: dict[bytes, int] = {}
        contents = [column.tobytes() for column in np.ascontiguousarray(values.T)]
        places = [distinct.setdefault(content, len(distinct)) for content in contents]
        columns = np.stack([np.frombuffer(content) for content in distinct], axis=1)
        per_group = np.zeros((self.num_groups, columns.shape[1]))
        np.add.at(per_group, self.groups, columns)
        with threadpool_limits(1, user_api="blas"):  # between products threads would spin
            sums = np.concatenate([counts @ per_group for counts in self.counts(self.resamples)])
        return sums[:, places]

    def sample_counts(self) -> Iterator[NDArray[np.int64]]:
        """How often each sample stands in a resample of those for areas, chunks of (R', N)."""
        for counts in self.counts(self.area_resamples, _CACHED_BYTES, np.int64):
            yield np.take(counts, self.groups, axis=1)


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentiles that enclose `level` of `values` (R,); None where none is defined.

    A score that some resamples do not have (an area without samples of its class) is judged by
    those that have it.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(differences: Floats) -> float:
    """The p-value of "no difference" from resampled differences (R,): twice the smaller tail.

    Counted with the observed one (Davison and Hinkley 1997, 4.2): never 0, at least 2 / (R + 1).
    """
    defined = differences[~np.isnan(differences)]
    below, above = int((defined <= 0).sum()), int((defined >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(defined)))
