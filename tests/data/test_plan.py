"""The arithmetic of order and batches: tables, literal values, and properties over many shapes."""

from __future__ import annotations

from collections import Counter
from itertools import permutations as all_permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mmsa.data.plan import (
    BatchPlan,
    Order,
    batch_plan,
    deal,
    evaluation_batches,
    evaluation_order,
    mix64,
    permutation,
    stream_key,
    uniforms,
)
from mmsa.errors import UserError

Place = tuple[int, int]  # shard, ordinal in it

SHARD_SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def order_of(sizes: list[int], **changes: Any) -> Order:
    arguments = {"identity": "a", "seed": 0, "epoch": 0, "window_shards": 3, **changes}
    return Order(np.array(sizes, dtype=np.int64), **arguments)


def places(order: Order, start: int = 0, stop: int | None = None) -> list[Place]:
    shards, ordinals = order.slice(start, len(order) if stop is None else stop)
    return list(zip(shards.tolist(), ordinals.tolist(), strict=True))


@st.composite
def epochs(draw: st.DrawFn) -> tuple[BatchPlan, Order, list[int]]:
    """Any shard sizes and any batch arithmetic that the plan accepts for them."""
    sizes = draw(SHARD_SIZES.filter(lambda sizes: sum(sizes) > 0))
    world_size, micro = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    drop_last = draw(st.booleans())
    most = sum(sizes) // (micro * world_size) if drop_last else 3
    if most == 0:
        drop_last, most = False, 3
    global_batch_size = micro * world_size * draw(st.integers(1, most))
    plan = batch_plan(
        sum(sizes),
        global_batch_size=global_batch_size,
        micro_batch_size=micro,
        world_size=world_size,
        drop_last=drop_last,
    )
    order = order_of(
        sizes,
        window_shards=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 3)),
        epoch=draw(st.integers(0, 3)),
    )
    return plan, order, sizes


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


def step_places(plan: BatchPlan, order: Order, step: int, lengths: Any = None) -> list[list[list]]:
    """Rank -> micro-step -> places of one step."""
    _, start, stop = plan.locate(step)
    here = places(order, start, stop)
    lengths = None if lengths is None else lengths[: len(here)]
    return [
        [[here[position] for position in micro] for micro in deal(lengths, len(here), plan, rank)]
        for rank in range(plan.world_size)
    ]


@given(epochs(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_ranks_and_micro_batches_only_divide_the_order(
    drawn: tuple[BatchPlan, Order, list[int]], bucketed: bool, random: Any
) -> None:
    plan, order, sizes = drawn
    whole = places(order)
    lengths = np.array([random.randrange(5) for _ in whole]) if bucketed else None
    consumed: list[Place] = []
    for step in range(plan.steps_per_epoch):
        ranks = step_places(plan, order, step, lengths)
        assert [len(micro_steps) for micro_steps in ranks] == (
            [plan.accumulation_steps] * plan.world_size
        )
        union = [place for rank in ranks for micro in rank for place in micro]
        start = step * plan.global_batch_size
        stop = min(start + plan.global_batch_size, plan.num_samples)
        assert sorted(union) == sorted(whole[start:stop])
        assert max(len(micro) for rank in ranks for micro in rank) <= plan.micro_batch_size
        if stop - start == plan.global_batch_size:
            assert {len(micro) for rank in ranks for micro in rank} == {plan.micro_batch_size}
        consumed += union
    assert len(consumed) == len(set(consumed)) == sum(sizes) - plan.left_out_per_epoch
    assert plan.left_out_per_epoch < plan.global_batch_size
    if not plan.drop_last:
        assert plan.left_out_per_epoch == 0


@given(epochs())
@settings(max_examples=60, deadline=None)
def test_steps_follow_each_other_through_the_epochs(
    drawn: tuple[BatchPlan, Order, list[int]],
) -> None:
    plan, _, _ = drawn
    expected = [
        (epoch, start, min(start + plan.global_batch_size, plan.num_samples))
        for epoch in range(3)
        for start in range(0, plan.num_samples - plan.left_out_per_epoch, plan.global_batch_size)
    ]
    assert [plan.locate(step) for step in range(3 * plan.steps_per_epoch)] == expected


def test_dealing_a_whole_step_in_its_order() -> None:
    plan = batch_plan(100, global_batch_size=12, micro_batch_size=2, world_size=3)
    assert plan.accumulation_steps == 2
    dealt = [[part.tolist() for part in deal(None, 12, plan, rank)] for rank in range(3)]
    assert dealt == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]


def test_dealing_by_length_gives_neighbours_to_all_ranks_at_once() -> None:
    plan = batch_plan(100, global_batch_size=8, micro_batch_size=2, world_size=2)
    lengths = np.array([80, 10, 70, 20, 60, 30, 50, 40])
    dealt = [[part.tolist() for part in deal(lengths, 8, plan, rank)] for rank in range(2)]
    assert dealt == [[[1, 3], [6, 4]], [[5, 7], [2, 0]]]
    equal = [part.tolist() for part in deal(np.full(8, 7), 8, plan, 0)]
    assert equal == [[0, 1], [4, 5]]  # ties keep the order


@given(st.lists(st.integers(0, 140), min_size=24, max_size=24))
def test_no_rank_waits_for_a_longer_micro_batch_than_the_next_step_has(lengths: list[int]) -> None:
    plan = batch_plan(24, global_batch_size=24, micro_batch_size=2, world_size=4)
    dealt = [deal(np.array(lengths), 24, plan, rank) for rank in range(4)]
    for now, after in zip(range(2), range(1, 3), strict=True):
        longest_now = max(lengths[p] for rank in dealt for p in rank[now])
        shortest_after = min(lengths[p] for rank in dealt for p in rank[after])
        assert longest_now <= shortest_after


def test_a_last_incomplete_step_is_spread_evenly() -> None:
    plan = batch_plan(15, global_batch_size=12, micro_batch_size=2, world_size=3, drop_last=False)
    assert (plan.steps_per_epoch, plan.left_out_per_epoch) == (2, 0)
    assert plan.locate(1) == (0, 12, 15)
    assert plan.locate(2) == (1, 0, 12)
    dealt = [[part.tolist() for part in deal(None, 3, plan, rank)] for rank in range(3)]
    assert dealt == [[[], [1]], [[0], []], [[], [2]]]


def test_the_arithmetic_in_words() -> None:
    plan = batch_plan(2979, global_batch_size=32, micro_batch_size=8, world_size=2)
    assert plan.in_words() == (
        "global batch 32 = micro-batch 8 x accumulation 2 x world 2; "
        "2979 samples = 93 steps an epoch, 3 left out"
    )


@pytest.mark.parametrize(
    ("global_batch_size", "micro", "world_size", "advice"),
    [
        (50, 4, 4, "does not divide by 4 ranks x micro-batch 4 = 16; use 48 or 64"),
        (3, 4, 1, "does not divide by 1 rank x micro-batch 4 = 4; use 4,"),
        (33, 8, 2, "does not divide by 2 ranks x micro-batch 8 = 16; use 32 or 48"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest(
    global_batch_size: int, micro: int, world_size: int, advice: str
) -> None:
    with pytest.raises(UserError) as refused:
        batch_plan(
            1000,
            global_batch_size=global_batch_size,
            micro_batch_size=micro,
            world_size=world_size,
        )
    assert f"train.global_batch_size={global_batch_size}" in str(refused.value)
    assert advice in str(refused.value)


def test_too_few_samples_are_refused() -> None:
    arguments = {"global_batch_size": 8, "micro_batch_size": 8, "world_size": 1}
    with pytest.raises(UserError, match="has 7 samples, fewer than one global batch of 8"):
        batch_plan(7, **arguments)
    with pytest.raises(UserError, match="has 0 samples"):
        batch_plan(0, **arguments, drop_last=False)
    assert batch_plan(7, **arguments, drop_last=False).steps_per_epoch == 1
    assert batch_plan(8, **arguments).steps_per_epoch == 1


def test_evaluation_is_sorted_by_length_then_key() -> None:
    lengths = np.array([5, 3, 5, 1])
    hashes = np.array([9, 8, (1 << 64) - 1, 7], dtype=np.uint64)
    assert evaluation_order(lengths, hashes).tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 40, 63])
def test_evaluation_has_each_sample_once_whatever_the_world(
    num_samples: int, world_size: int
) -> None:
    ranks = [
        list(evaluation_batches(num_samples, batch_size=8, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert len({len(turns) for turns in ranks}) == 1
    real = sorted(turn for turns in ranks for turn in turns if turn != (0, 0))
    expected = [(start, min(start + 8, num_samples)) for start in range(0, num_samples, 8)]
    assert real == expected
    # Whole batches in turn: batch b belongs to rank b modulo the world.
    for rank, turns in enumerate(ranks):
        own = [turn for turn in turns if turn != (0, 0)]
        assert own == expected[rank::world_size]
