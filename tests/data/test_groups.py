"""Groups of shards: the batches of any world size, read by the ranks from few shards each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import order_of, places

from mmsa.data.order import Order
from mmsa.data.plan import batch_plan
from mmsa.errors import UserError


def test_literal_values() -> None:
    # A change of these would give running experiments another order: it needs a new version.
    order = order_of([2, 0, 3, 1, 4], window_shards=2, groups=2, global_batch_size=4)
    # Shards 4 and 0, cut after its first sample, then the rest of 0 with 1 and 2, and 3.
    whole = [(4, 0), (4, 1), (2, 2), (2, 1), (0, 0), (4, 2), (0, 1), (2, 0)]
    assert places(order) == [*whole, (4, 3), (3, 0)]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_each_batch_takes_its_share_from_each_group(
    sizes: list[int], window_shards: int, groups: int, share: int, data: st.DataObject
) -> None:
    batch = groups * share
    changes = {"window_shards": window_shards, "groups": groups, "global_batch_size": batch}
    whole = places(order_of(sizes, **changes))
    assert sorted(whole) == [(shard, n) for shard, size in enumerate(sizes) for n in range(size)]
    # The groups are the epoch's permuted shards, cut into equal parts: windows apart, as with one.
    permuted = list(dict.fromkeys(shard for shard, _ in places(order_of(sizes, window_shards=1))))
    line = [(shard, n) for shard in permuted for n in range(sizes[shard])]
    borders = [len(line) * number // groups for number in range(groups + 1)]
    parts = [set(line[first:end]) for first, end in pairwise(borders)]
    for start in range(0, len(line) - batch + 1, batch):
        for number, part in enumerate(parts):
            first = start + number * share
            assert set(whole[first : first + share]) <= part
    order = order_of(sizes, **changes)
    for _ in range(4):  # one object, asked out of turn: its kept windows must not matter
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        assert places(order, start, stop) == whole[start:stop]


@pytest.mark.parametrize(
    ("world", "groups", "blocks"),
    [(1, 4, 1), (2, 4, 2), (4, 4, 4), (8, 4, 4), (3, 4, 1), (6, 4, 2)],
)
def test_neighbouring_ranks_share_a_block(world: int, groups: int, blocks: int) -> None:
    plan = batch_plan(
        240, global_batch_size=48, micro_batch_size=2, world_size=world, groups=groups
    )
    found = [plan.block(rank, 48, 96) for rank in range(world)]
    ranks, size = world // blocks, 48 // blocks
    assert [block.start for block in found] == [48 + rank // ranks * size for rank in range(world)]
    assert {block.stop - block.start for block in found} == {size}
    assert [block.rank for block in found] == [rank % ranks for rank in range(world)]
    assert {block.plan.accumulation_steps for block in found} == {plan.accumulation_steps}


def test_a_node_reads_only_the_windows_of_its_group() -> None:
    """8 nodes of 4 ranks: by counting the shards that each one reads."""
    sizes = np.full(512, 50)

    def shards_read(groups: int) -> tuple[float, int]:
        """(shards read by all nodes / shards used, windows that a rank keeps)."""
        plan = batch_plan(
            25600, global_batch_size=256, micro_batch_size=8, world_size=32, groups=groups
        )
        used: set[int] = set()
        read: list[set[int]] = []
        kept = 0
        for node in range(8):
            order = Order(
                sizes,
                identity="a",
                seed=0,
                epoch=0,
                window_shards=8,
                groups=groups,
                global_batch_size=256,
            )
            here: set[int] = set()
            for step in range(plan.steps_per_epoch):
                _, start, stop = plan.locate(step)
                for rank in range(4 * node, 4 * node + 4):
                    block = plan.block(rank, start, stop)
                    here.update(order.slice(block.start, block.stop)[0].tolist())
            read.append(here)
            used |= here
            kept = max(kept, order.num_kept_windows)
        return sum(map(len, read)) / len(used), kept

    assert shards_read(1) == (8.0, 2)
    assert shards_read(8) == (pytest.approx(1.0, abs=7 / 512), 2)
    assert shards_read(32)[0] == pytest.approx(1.0, abs=31 / 512)


def test_windows_in_use_are_not_computed_again() -> None:
    """A rank that reads from all groups keeps a window of each, also while they change."""
    sizes = [7, 9, 8, 11, 6, 10, 9, 8, 7, 12, 9, 10] * 4
    order = order_of(sizes, window_shards=2, groups=8, global_batch_size=16)
    computed: list[int] = []
    window = order.window

    def counted(number: int) -> object:
        if number not in order._windows:
            computed.append(number)
        return window(number)

    order.window = counted  # type: ignore[method-assign, assignment]
    for start in range(0, len(order) // 16 * 16, 16):
        order.slice(start, start + 16)
    # Twice at most: until the kept windows are as many as a slice needs.
    assert max(computed.count(number) for number in set(computed)) <= 2
    assert len(computed) <= len(set(computed)) + 8


def test_groups_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.groups=5 does not divide .*=32: .* use 2 or 4, or"):
        batch_plan(100, global_batch_size=32, micro_batch_size=2, world_size=2, groups=5)
