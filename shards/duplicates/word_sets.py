"""Sets of words that share most of their words: a search in nearly linear time.

Let two sets have a and b words, a <= b. They are near where they share at least some number of
words, so a misses at most `missing` of its own, and b likewise. Order the words of each from rare
to frequent. Of the first `missing + k` words of either, k are shared, the same k (the extended
prefixes of Wang, Li and Feng, Can we beat the prefix filtering?, SIGMOD 2012). So all combinations
of k words of the prefix are keys, and near sets have one in common. Where frequent words make a
key common, k grows for the sets that have it. With k at its largest, a common key means near.

This is done for each pair of lengths, because then the numbers are small: the words of two tweets
differ in at most a ninth of their sum. Long texts have too many combinations and are searched one
by one (`long_word_sets.py`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shards.duplicates.buckets import Buckets, Keys, buckets_of, join_buckets
from shards.duplicates.joined import Ints, Joined

# Jaccard similarity of near sets as a fraction, compared in integers to avoid rounding.
NEAR = (4, 5)

Words = np.ndarray[Any, np.dtype[np.int32]]

_KEYS = 10  # of a set for one pair of lengths, where k begins; measured on made-up tweets
_MOST_WORDS = 4  # in a key where k begins
_CALL = 1000  # a call of numpy costs as much as keys of this many sets
_HEAVY = 64  # sets with one key; k grows for those of larger buckets


def at_least(part: int, total: int) -> int:
    """`part / total` rounded up."""
    return -(-part // total)


def shared_at_least(one: int, other: int) -> int:
    """How many words near sets of `one` and `other` words share at least."""
    part, total = NEAR
    return at_least(part * (one + other), part + total)


@dataclass(frozen=True)
class SetsOfLength:
    """All different sets of one length: their `positions` (n,) and `words` (n, length).

    Words are numbers, the smaller the rarer, and ascend in each row.
    """

    positions: Ints
    words: Words

    @cached_property
    def hashes(self) -> Keys:
        """A random number for each word, (length, n)."""
        return _mixed(self.words.T.astype(np.uint64))

    @cached_property
    def sketches(self) -> Keys:
        """The parity of the words in each of 64 classes, (n,): d words of difference flip at most
        d bits."""
        bits = np.uint64(1) << (self.hashes >> np.uint64(58))
        return np.bitwise_xor.reduce(bits, axis=0)

    def keys(self, rows: Ints, missing: int, k: int) -> Keys:
        """The keys of `rows`, (combinations, rows): sums of the hashes of k words."""
        prefix = [self.hashes[place][rows] for place in range(missing + k)]
        combinations = itertools.combinations(prefix, k)
        return np.stack([sum(c[1:], start=c[0].copy()) for c in combinations])


def join_near(sets: dict[int, SetsOfLength], joined: Joined) -> None:
    """Join the positions of all near sets; `sets` are by length."""
    part, total = NEAR
    for longer in sorted(sets):
        for shorter in range(at_least(part * longer, total), longer + 1):
            if shorter in sets:
                _join_lengths(sets[shorter], sets[longer], joined)


def _join_lengths(one: SetsOfLength, other: SetsOfLength, joined: Joined) -> None:
    lengths = one.words.shape[1], other.words.shape[1]
    shared = shared_at_least(*lengths)
    missing = lengths[0] - shared, lengths[1] - shared
    if missing == (0, 0):
        return  # the same words, and all sets are different
    same = one is other
    split = 0 if same else len(one.positions)
    members = one.positions if same else np.concatenate([one.positions, other.positions])
    most_apart = sum(missing)

    def alike(left: Ints, right: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        right = right - split
        apart = np.bitwise_count(one.sketches[left] ^ other.sketches[right])
        found = apart <= most_apart
        maybe = np.flatnonzero(found)
        found[maybe] = _shares(one.words, left[maybe], other.words, right[maybe], shared)
        return found

    k = _first_k(missing[1], shared)
    rows = np.arange(len(members))
    while True:
        buckets = _keyed(one, other, rows, split, missing, k)
        heavy = join_buckets(buckets, members, alike, joined, _HEAVY)
        rows = np.unique(heavy.rows)
        deeper = min(shared, k + 2)
        cost = (len(rows) + _CALL) * math.comb(missing[1] + deeper, deeper)
        if k == shared or cost > heavy.pairs:
            join_buckets(heavy, members, alike, joined)
            return
        k = deeper


def _first_k(missing: int, shared: int) -> int:
    k = 1
    while k < min(shared, _MOST_WORDS) and math.comb(missing + k + 1, k + 1) <= _KEYS:
        k += 1
    return k


def _keyed(
    one: SetsOfLength,
    other: SetsOfLength,
    rows: Ints,
    split: int,
    missing: tuple[int, int],
    k: int,
) -> Buckets:
    """The buckets of `rows`; those from `split` on are of `other`."""
    left = rows[rows < split] if split else rows
    keys = one.keys(left, missing[0], k)
    flat, owners = keys.ravel(), np.tile(left, len(keys))
    if split:
        right = rows[rows >= split]
        more = other.keys(right - split, missing[1], k)
        flat = np.concatenate([flat, more.ravel()])
        owners = np.concatenate([owners, np.tile(right, len(more))])
    return buckets_of(flat, owners, len(one.positions) + len(other.positions), split)


def _shares(
    one: Words, left: Ints, other: Words, right: Ints, shared: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the pairs of rows share at least `shared` words."""
    counts = np.zeros(len(left), dtype=np.int64)
    chosen = other[right]
    for column in one[left].T:
        counts += (chosen == column[:, None]).any(axis=1)
    return np.asarray(counts >= shared)


def _mixed(numbers: Keys) -> Keys:
    """SplitMix64 of each number."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
