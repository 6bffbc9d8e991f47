"""Rows that share a key are candidates: they are compared, and those that are alike are joined.

Common to the searches for texts and images, which differ in how they make keys and compare rows.
Everything is done on arrays, a batch of pairs at a time, so memory does not grow with the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.duplicates.joined import Ints, Joined

Keys = np.ndarray[Any, np.dtype[np.uint64]]
# Which of the pairs (one[i], other[i]) of rows are duplicates, (n,).
Alike = Callable[[Ints, Ints], np.ndarray[Any, np.dtype[np.bool_]]]

_BATCH_PAIRS = 1 << 20  # about 100 MiB for texts of 20 words


@dataclass(frozen=True)
class Buckets:
    """Rows with equal keys: bucket i is `rows[starts[i] : starts[i + 1]]`, ascending.

    `split` divides the rows into two sides; only rows of different sides are compared. With
    `split` 0 all are.
    """

    rows: Ints
    starts: Ints
    split: int = 0

    @property
    def sizes(self) -> Ints:
        """Rows in each bucket."""
        return np.diff(self.starts)

    @property
    def pairs(self) -> int:
        """How many pairs there are to compare, at most."""
        sizes = self.sizes
        return int((sizes * (sizes - 1) // 2).sum())

    def only(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> Buckets:
        """The buckets for which `wanted` is true."""
        sizes = self.sizes
        starts = np.concatenate([[0], np.cumsum(sizes[wanted])])
        return Buckets(self.rows[np.repeat(wanted, sizes)], starts, self.split)


def buckets_of(keys: Keys, rows: Ints, count: int, split: int = 0) -> Buckets:
    """The buckets of two and more of `rows` (n,), all below `count`, by their `keys` (n,).

    Keys are compared without their lowest bits, which the row takes: one sort of integers is then
    enough. `keys` is overwritten. Equal keys always meet; different ones may, rarely.
    """
    low = np.uint64((1 << max(1, int(count).bit_length())) - 1)
    keys &= ~low
    keys |= rows.astype(np.uint64)
    keys.sort()
    same = (keys[1:] ^ keys[:-1]) <= low
    inside = np.zeros(len(keys), dtype=bool)
    inside[1:] |= same
    inside[:-1] |= same
    begins = np.concatenate([[True], ~same])[inside] if len(keys) else inside
    found = (keys[inside] & low).astype(np.int64)
    starts = np.append(np.flatnonzero(begins), len(found))
    return Buckets(found, starts, split)


def join_buckets(
    buckets: Buckets, members: Ints, alike: Alike, joined: Joined, largest: int | None = None
) -> Buckets:
    """Join the rows of each bucket that are alike; row r is `members[r]` in `joined`.

    Exact and transitive: rows in one group are not compared with each other again. Buckets of more
    than `largest` rows that are not one group after a comparison of neighbours are returned.
    """
    for one, other in _neighbours(buckets):
        _join_pairs(one, other, members, alike, joined)
    buckets = buckets.only((buckets.sizes > 2) & ~_is_one_group(buckets, members, joined))
    heavy = buckets.sizes > (len(members) if largest is None else largest)
    for one, other in _all_pairs(buckets.only(~heavy)):
        _join_pairs(one, other, members, alike, joined)
    return buckets.only(heavy)


def _join_pairs(one: Ints, other: Ints, members: Ints, alike: Alike, joined: Joined) -> None:
    for start in range(0, len(one), _BATCH_PAIRS):
        left, right = one[start : start + _BATCH_PAIRS], other[start : start + _BATCH_PAIRS]
        apart = joined.roots(members[left]) != joined.roots(members[right])
        left, right = left[apart], right[apart]
        found = alike(left, right)
        joined.join(members[left[found]], members[right[found]])


def _is_one_group(
    buckets: Buckets, members: Ints, joined: Joined
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not len(buckets.rows):
        return np.zeros(0, dtype=bool)
    roots = joined.roots(members[buckets.rows])
    starts = buckets.starts[:-1]
    return np.asarray(np.minimum.reduceat(roots, starts) == np.maximum.reduceat(roots, starts))


def _neighbours(buckets: Buckets) -> Iterator[tuple[Ints, Ints]]:
    """Pairs that would join each bucket if all its rows were alike."""
    rows, sizes = buckets.rows, buckets.sizes
    if not len(rows):
        return
    if not buckets.split:
        inside = np.ones(len(rows), dtype=bool)
        inside[buckets.starts[1:] - 1] = False
        before = np.flatnonzero(inside)
        yield rows[before], rows[before + 1]
        return
    first_right = np.repeat(_first_right(buckets), sizes)
    place, ends = np.arange(len(rows)), np.repeat(buckets.starts[1:], sizes)
    left = (rows < buckets.split) & (first_right < ends)
    yield rows[left], rows[first_right[left]]
    right = (rows >= buckets.split) & (first_right > np.repeat(buckets.starts[:-1], sizes))
    right &= place > first_right  # the first one is above
    yield rows[first_right[right] - 1], rows[right]


def _first_right(buckets: Buckets) -> Ints:
    """Where in `rows` the second side of each bucket begins."""
    lefts = np.add.reduceat((buckets.rows < buckets.split).astype(np.int64), buckets.starts[:-1])
    return np.asarray(buckets.starts[:-1] + lefts)


def _all_pairs(buckets: Buckets) -> Iterator[tuple[Ints, Ints]]:
    """All pairs of rows of one bucket and, with a split, of different sides; in batches."""
    rows, sizes = buckets.rows, buckets.sizes
    if not len(rows):
        return
    place = np.arange(len(rows))
    begins = place + 1
    if buckets.split:
        begins = np.maximum(begins, np.repeat(_first_right(buckets), sizes))
    ends = np.repeat(buckets.starts[1:], sizes)
    counts = np.maximum(0, ends - begins)
    if buckets.split:
        counts[rows >= buckets.split] = 0
    upto = np.cumsum(counts)
    start = 0
    while start < len(rows):
        done = int(upto[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(upto, done + _BATCH_PAIRS, side="right")))
        batch = counts[start:end]
        one = np.repeat(place[start:end], batch)
        offset = np.arange(len(one)) - np.repeat(upto[start:end] - batch - done, batch)
        yield rows[one], rows[np.repeat(begins[start:end], batch) + offset]
        start = end
