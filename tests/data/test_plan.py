"""The arithmetic of batches: tables, and properties over many shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import SHARD_SIZES, Place, order_of, places

from mmsa.data.order import Order
from mmsa.data.plan import BatchPlan, batch_plan, deal, evaluation_batches, evaluation_order
from mmsa.errors import UserError


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
    divisors = [number for number in range(1, 13) if global_batch_size % number == 0]
    groups = draw(st.sampled_from(divisors))
    plan = batch_plan(
        sum(sizes),
        global_batch_size=global_batch_size,
        micro_batch_size=micro,
        world_size=world_size,
        drop_last=drop_last,
        groups=groups,
    )
    order = order_of(
        sizes,
        groups=groups,
        global_batch_size=global_batch_size,
        window_shards=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 3)),
        epoch=draw(st.integers(0, 3)),
    )
    return plan, order, sizes


def step_places(plan: BatchPlan, order: Order, step: int, lengths: Any = None) -> list[list[list]]:
    """Rank -> micro-step -> places of one step."""
    _, start, stop = plan.locate(step)
    ranks = []
    for rank in range(plan.world_size):
        block = plan.block(rank, start, stop)
        here = places(order, block.start, block.stop)
        own = None if lengths is None else lengths[: len(here)]
        dealt = deal(own, len(here), block.plan, block.rank)
        ranks.append([[here[position] for position in micro] for micro in dealt])
    return ranks


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
        smallest = min(len(micro) for rank in ranks for micro in rank)
        assert plan.smallest_micro_batch(step) == smallest
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
        (50, 4, 4, "64, or another number of ranks"),
        (32, 32, 2, "x micro-batch 32 = 64; use 64, or train.micro_batch_size=16"),
        (
            3,
            4,
            1,
            "does not divide by 1 rank x micro-batch 4 = 4; use 4, or train.micro_batch_size=3",
        ),
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
