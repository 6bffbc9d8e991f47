"""Seeded percentile bootstrap over duplicate groups: how a score varies over other samples.

Duplicates are not independent, so whole groups are drawn: G of the G groups with replacement, each
with all its samples. Models resampled with the same seed over the same samples share their
resamples, so their scores can be subtracted resample by resample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Drawn = Iterator[tuple[Floats, list[Floats]]]

LEVEL = 0.95
RESAMPLES = 10_000
AREA_RESAMPLES = 2_000
SEED = 0
_CHUNK_BYTES = 32 << 20  # counts per matrix product
_COUNTED_AT_ONCE = (
    1 << 15
)  # groups: few calls for small splits, counters that fit a cache for large ones
_DENSE_COLUMNS = 64  # class counts; with more, a sparse product is faster
_CACHED_BYTES = 2 << 20  # counts that are sorted and added up, which is faster in cache


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
        """Resamples for any group ids (N,), in a fixed order of the samples: sorted by key."""
        _, first, codes = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        return cls(codes.reshape(-1).astype(np.int64), len(first), **settings)

    def counts(
        self, resamples: int, chunk_bytes: int = _CHUNK_BYTES, dtype: Any = np.float64
    ) -> Iterator[NDArray[Any]]:
        """How often each group is drawn, in chunks (R', G); rows do not depend on the chunks."""
        random = np.random.default_rng(self.seed)
        rows = max(1, chunk_bytes // (8 * self.num_groups))
        for start in range(0, resamples, rows):
            chunk = np.empty((min(rows, resamples - start), self.num_groups), dtype)
            step = max(1, _COUNTED_AT_ONCE // self.num_groups)
            for first in range(0, len(chunk), step):
                chunk[first : first + step] = self._count(random, len(chunk[first : first + step]))
            yield chunk

    def _count(self, random: np.random.Generator, rows: int) -> NDArray[np.int64]:
        """Draw `rows` resamples and count each group: (rows, G)."""
        shape = (rows, self.num_groups)
        drawn = random.integers(0, self.num_groups, shape, dtype=np.uint32)
        places = drawn + np.arange(rows)[:, None] * self.num_groups
        counted = np.bincount(places.reshape(-1), minlength=rows * self.num_groups)
        return counted.reshape(shape)

    def sums(self, values: Floats, places: Sequence[Places] = (), num_classes: int = 0) -> Drawn:
        """Sums over each resample, in chunks of resamples.

        Yields (sums (R', K) of `values` (N, K), and for each of `places` (N,), which are classes or
        -1, how many samples are of each class, (R', C)). All are exact sums of float64, so the way
        they are added does not matter: sparse for many classes, where most products are with 0.
        """
        # Equal columns are summed once: empty bins, classes of one model at two temperatures.
        distinct: dict[bytes, int] = {}
        contents = [column.tobytes() for column in np.ascontiguousarray(values.T)]
        of_values = [distinct.setdefault(content, len(distinct)) for content in contents]
        columns = np.stack([np.frombuffer(content) for content in distinct], axis=1)
        per_group = np.zeros((self.num_groups, columns.shape[1]))
        np.add.at(per_group, self.groups, columns)
        ones = self._class_counts(places, num_classes)
        width = ones.shape[1]
        if width <= _DENSE_COLUMNS:
            per_group, ones = np.hstack([per_group, ones.toarray()]), ones[:, :0]
        transposed = ones.T.tocsr()
        rows_bytes = _CHUNK_BYTES * self.num_groups // max(self.num_groups, width)
        for counts in self.counts(self.resamples, rows_bytes):
            with threadpool_limits(1, user_api="blas"):  # BLAS threads would spin between products
                sums = counts @ per_group
            # In Fortran's order, which decides in which order scores add up classes.
            classes = np.asfortranarray(sums[:, columns.shape[1] :])
            if ones.shape[1]:
                classes = (transposed @ counts.T).T
            yield (
                sums[:, of_values],
                [classes[:, i * num_classes : (i + 1) * num_classes] for i in range(len(places))],
            )

    def _class_counts(self, places: Sequence[Places], num_classes: int) -> Any:
        """Sparse (G, len(places) x C): how many samples of each group are of each class."""
        from scipy.sparse import csr_matrix

        shape = (self.num_groups, len(places) * num_classes)
        found = [(self.groups[p >= 0], p[p >= 0] + i * num_classes) for i, p in enumerate(places)]
        groups = np.concatenate([group for group, _ in found]) if found else np.empty(0, np.int64)
        classes = np.concatenate([place for _, place in found]) if found else groups
        return csr_matrix((np.ones(len(groups)), (groups, classes)), shape)

    def sample_counts(self) -> Iterator[NDArray[np.int64]]:
        """How often each sample is in each resample for areas, in chunks (R', N)."""
        for counts in self.counts(self.area_resamples, _CACHED_BYTES, np.int64):
            yield np.take(counts, self.groups, axis=1)


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentiles that enclose `level` of `values` (R,); None if all are NaN.

    Resamples in which the score is undefined (an area without samples of its class) are ignored.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(differences: Floats) -> float:
    """The p-value of "no difference" from resampled differences (R,): twice the smaller tail.

    The observed difference is counted too (Davison and Hinkley 1997, 4.2): p >= 2 / (R + 1).
    """
    defined = differences[~np.isnan(differences)]
    below, above = int((defined <= 0).sum()), int((defined >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(defined)))
