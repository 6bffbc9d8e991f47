"""The order of an epoch: literal values, an unbiased shuffle, and no dependence on the asking."""

from __future__ import annotations

from collections import Counter
from itertools import permutations as all_permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import SHARD_SIZES, order_of, places
from scipy.stats import chisquare

from mmsa.foundation.hashed_random import mix64, permutation, stream_key, uniforms


def test_the_generator_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as published with the algorithm.
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(1, 6, dtype=np.uint64) * golden + np.uint64(1234567)
    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_literal_values() -> None:
    # A change of these would give running experiments another order: it needs a new version.
    assert stream_key("shards", "digest", 0, 1) == 930866756944309530
    assert permutation(10, 1234567).tolist() == [1, 3, 7, 0, 5, 8, 2, 6, 9, 4]
    assert uniforms(1234567, 2) == [0.3500795420214081, 0.17364409667091263]
    order = order_of([2, 0, 3, 1], window_shards=2)
    assert places(order) == [(0, 0), (0, 1), (2, 2), (2, 0), (2, 1), (3, 0)]


def test_permutations_of_few_elements() -> None:
    assert permutation(0, 5).tolist() == []
    assert permutation(1, 5).tolist() == [0]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))
    assert permutation(5, -1).tolist() == permutation(5, (1 << 64) - 1).tolist()


def test_every_permutation_is_as_likely() -> None:
    # Chi-square over the 24 orders of 4 samples, 200 expected of each. The keys are fixed, so the
    # test cannot fail by chance; a biased shuffle (sorting 8-bit hashes, say) is far below.
    drawn = Counter(tuple(permutation(4, stream_key("t", n)).tolist()) for n in range(4800))
    counts = [drawn[order] for order in all_permutations(range(4))]
    assert sum(counts) == 4800
    assert chisquare(counts).pvalue > 0.01


def test_every_position_is_as_likely_for_each_sample() -> None:
    # 4 shards in windows of 2: a sample's shard falls into either window, and the sample anywhere
    # inside. First and last sample of a shard, 40 positions, 100 expected at each.
    sizes = [10, 10, 10, 10]
    for sample in ((0, 0), (3, 9)):
        counts = np.zeros(40)
        for epoch in range(4000):
            counts[places(order_of(sizes, window_shards=2, epoch=epoch)).index(sample)] += 1
        assert chisquare(counts).pvalue > 0.01


def test_neighbours_in_a_shard_are_no_neighbours_in_the_order() -> None:
    # The mean distance of two different positions of n is (n + 1) / 3, for samples packed side by
    # side as for any other: a shuffle buffer would leave them near each other.
    order = places(order_of([1000] * 8, window_shards=8))
    position = {place: number for number, place in enumerate(order)}
    distances = [
        abs(position[shard, ordinal] - position[shard, ordinal + 1])
        for shard in range(8)
        for ordinal in range(999)
    ]
    assert np.mean(distances) == pytest.approx(8001 / 3, rel=0.03)


def test_uniforms_are_in_the_unit_interval_and_spread() -> None:
    draws = np.array([uniforms(stream_key(n), 4) for n in range(2000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, bins=10, range=(0, 1))
        assert chisquare(counts).pvalue > 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.08


@given(SHARD_SIZES, st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_order_holds_every_sample_once(
    sizes: list[int], window_shards: int, seed: int, epoch: int
) -> None:
    order = order_of(sizes, window_shards=window_shards, seed=seed, epoch=epoch)
    everything = [(shard, n) for shard, size in enumerate(sizes) for n in range(size)]
    assert len(order) == len(everything)
    assert sorted(places(order)) == everything


@given(SHARD_SIZES, st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_a_slice_from_anywhere_is_that_of_the_whole_order(
    sizes: list[int], window_shards: int, data: st.DataObject
) -> None:
    whole = places(order_of(sizes, window_shards=window_shards))
    order = order_of(sizes, window_shards=window_shards)
    for _ in range(4):  # one object, asked out of turn: its kept windows must not matter
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        assert places(order, start, stop) == whole[start:stop]


def test_windows_keep_their_shards_together() -> None:
    order = places(order_of([5] * 7, window_shards=2))
    windows = [{shard for shard, _ in order[at : at + 10]} for at in range(0, 35, 10)]
    assert [len(window) for window in windows] == [2, 2, 2, 1]
    assert sorted(shard for window in windows for shard in window) == list(range(7))
    assert [shard for shard, _ in order[:10]] != sorted(shard for shard, _ in order[:10])


def test_the_order_depends_on_identity_seed_epoch_and_window_alone() -> None:
    sizes = [20, 30, 25, 10]
    base = places(order_of(sizes))
    assert places(order_of(sizes)) == base
    others = [
        places(order_of(sizes, **change))
        for change in (
            {"seed": 1},
            {"epoch": 1},
            {"identity": "b"},
            {"window_shards": 1},
            {"seed": 1, "epoch": 1},
        )
    ]
    assert all(other != base for other in others)
    assert len({tuple(other) for other in others}) == len(others)
