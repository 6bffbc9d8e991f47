"""Which samples a rank reads at a step: pure arithmetic, no I/O.

An epoch has one order of all samples (order.py). Step t takes `order[t*G : (t+1)*G]`, G the global
batch size; ranks, micro-batches and workers only divide that slice. So the global batches are the
same for any world size and any number of workers, and a position is a step number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from mmsa.errors import UserError
from mmsa.foundation.hashed_random import IntArray, KeyArray


@dataclass(frozen=True)
class BatchPlan:
    """The batch arithmetic of a run: how a global batch is divided, and how many there are."""

    num_samples: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    drop_last: bool
    groups: int = 1  # of the order; each gives as many samples to a global batch

    @property
    def accumulation_steps(self) -> int:
        """Micro-steps per optimizer step on each rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_samples, self.global_batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def num_steps(self, epochs: int, max_steps: int | None) -> int:
        """Optimizer steps of a run of so many epochs, at most `max_steps`."""
        steps = epochs * self.steps_per_epoch
        return steps if max_steps is None else min(steps, max_steps)

    @property
    def left_out_per_epoch(self) -> int:
        """Samples of an epoch that no step reads: under `drop_last`, less than a global batch."""
        return self.num_samples % self.global_batch_size if self.drop_last else 0

    def locate(self, step: int) -> tuple[int, int, int]:
        """(epoch, first position, end position) of optimizer step `step`, counted over the run."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch_size
        return epoch, start, min(start + self.global_batch_size, self.num_samples)

    def smallest_micro_batch(self, step: int) -> int:
        """The samples of the smallest micro-batch of a step, over all ranks, as `deal` cuts it."""
        _, start, stop = self.locate(step)
        return (stop - start) // (self.accumulation_steps * self.world_size)

    @property
    def blocks(self) -> int:
        """Into how many parts a step is cut, each for ranks that share their groups."""
        return gcd(self.groups, self.world_size)

    def groups_of(self, ranks: range) -> range:
        """The groups that consecutive `ranks` read whole steps from."""
        ranks_of_block, groups_of_block = self.world_size // self.blocks, self.groups // self.blocks
        first, last = ranks[0] // ranks_of_block, ranks[-1] // ranks_of_block
        return range(first * groups_of_block, (last + 1) * groups_of_block)

    def block(self, rank: int, start: int, stop: int) -> Block:
        """The part of the step from `start` to `stop` that `rank` shares with its neighbours.

        As many blocks as divide both groups and ranks, so that the ranks of a block read from their
        own groups alone: with G groups, each of G, 2 G, ... ranks from one. The few samples of a
        last incomplete step are one block.
        """
        blocks = self.blocks if stop - start == self.global_batch_size else 1
        size, ranks = (stop - start) // blocks, self.world_size // blocks
        number, inside = divmod(rank, ranks)
        first = start + number * size
        smaller = replace(self, global_batch_size=self.global_batch_size // blocks)
        return Block(first, first + size, inside, replace(smaller, world_size=ranks))

    def in_words(self) -> str:
        """The arithmetic as one line of the log."""
        grouped = ""
        if self.groups > 1:
            grouped = (
                f"; {self.groups} groups of shards, {self.groups // self.blocks} for every "
                f"{self.world_size // self.blocks} rank(s)"
            )
        return (
            f"global batch {self.global_batch_size} = micro-batch {self.micro_batch_size} x "
            f"accumulation {self.accumulation_steps} x world {self.world_size}; "
            f"{self.num_samples} samples = {self.steps_per_epoch} steps an epoch, "
            f"{self.left_out_per_epoch} left out{grouped}"
        )


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a step for consecutive ranks, dealt among these."""

    start: int  # position in the epoch's order
    stop: int
    rank: int  # inside the block
    plan: BatchPlan  # of the block's ranks


def batch_plan(
    num_samples: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
    drop_last: bool = True,
    groups: int = 1,
) -> BatchPlan:
    """Check the batch arithmetic.

    Raises `UserError`, with the nearest numbers that divide, if a global batch does not divide by
    ranks x micro-batch or by the groups, and if the split is smaller than one global batch.
    """
    unit = micro_batch_size * world_size
    if global_batch_size % unit:
        below = global_batch_size // unit * unit
        nearest = " or ".join(str(number) for number in (below, below + unit) if number)
        smaller = range(1, min(micro_batch_size, global_batch_size // world_size + 1))
        fitting = [size for size in smaller if global_batch_size % (size * world_size) == 0]
        other = f"train.micro_batch_size={fitting[-1]}" if fitting else "another number of ranks"
        raise UserError(
            f"train.global_batch_size={global_batch_size} does not divide by {world_size} "
            f"{'rank' if world_size == 1 else 'ranks'} x micro-batch {micro_batch_size} = {unit}; "
            f"use {nearest}, or {other}"
        )
    if global_batch_size % groups:
        divisors = [number for number in range(1, groups) if global_batch_size % number == 0]
        raise UserError(
            f"data.groups={groups} does not divide train.global_batch_size={global_batch_size}: "
            "each group gives as many samples to a batch; use "
            f"{' or '.join(map(str, divisors[-2:]))}, or another global batch"
        )
    if num_samples < 1 or (drop_last and num_samples < global_batch_size):
        raise UserError(
            f"the training split has {num_samples} samples, fewer than one global batch of "
            f"{global_batch_size}; use a smaller train.global_batch_size or data.drop_last=false"
        )
    return BatchPlan(
        num_samples, global_batch_size, micro_batch_size, world_size, drop_last, groups
    )


def deal(lengths: IntArray | None, size: int, plan: BatchPlan, rank: int) -> list[IntArray]:
    """Deal a step's `size` samples to the micro-batches of `rank`: one (micro,) array each.

    The arrays hold positions inside the step's slice. With text `lengths` (size,) the samples are
    sorted by length first: the micro-batches that all ranks run at the same time then have similar
    lengths, and no rank waits for another. `None` keeps the order. A step has the same samples
    either way.

    A last incomplete step is spread evenly; a micro-batch may then be empty.
    """
    positions = np.arange(size, dtype=np.int64)
    if lengths is not None:
        # In as few bits as needed: a stable sort of 16-bit numbers takes a third of the time.
        narrow = lengths.astype(np.min_scalar_type(int(lengths.max(initial=0))))
        positions = np.argsort(narrow, kind="stable").astype(np.int64)
    slots = plan.accumulation_steps * plan.world_size
    ends = np.arange(slots + 1, dtype=np.int64) * size // slots  # slot i holds [ends[i], ends[i+1])
    mine = range(rank, slots, plan.world_size)
    return [positions[ends[slot] : ends[slot + 1]] for slot in mine]


def evaluation_order(text_lengths: IntArray, key_hashes: KeyArray) -> IntArray:
    """The order of an evaluation (N,): by text length, then by key hash."""
    return np.lexsort((key_hashes, text_lengths)).astype(np.int64)


def evaluation_batches(
    num_samples: int, *, batch_size: int, world_size: int, rank: int
) -> Iterator[tuple[int, int]]:
    """(start, stop) of the evaluation batches of `rank`; the cuts do not depend on the world size.

    Whole batches go to the ranks round-robin. All ranks yield the same number of batches: a rank
    without one yields (0, 0), a batch of weight 0, because a collective forward pass needs every
    rank.
    """
    num_batches = -(-num_samples // batch_size)
    for turn in range(-(-num_batches // world_size)):
        batch = turn * world_size + rank
        start = batch * batch_size
        yield (start, min(start + batch_size, num_samples)) if batch < num_batches else (0, 0)
