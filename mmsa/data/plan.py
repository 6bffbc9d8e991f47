"""Which samples a rank reads at a step: pure arithmetic, no I/O.

An epoch has one order of all samples (`Order`). Step t takes `order[t*G : (t+1)*G]`, G the global
batch size; ranks, micro-batches and workers only divide that slice. So the global batches are the
same for any world size and any number of workers, and a position is a step number.

Permutations come from `mmsa/foundation/hashed_random.py`, not from a library's generator, whose
stream may change between versions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mmsa.errors import UserError
from mmsa.foundation.hashed_random import IntArray, KeyArray, permutation, stream_key

Piece: TypeAlias = tuple[int, slice]  # window number, positions inside that window


@dataclass(frozen=True)
class Window:
    """A few shards of an epoch, their n samples permuted together."""

    members: IntArray  # (k,) the shards of the window, in the epoch's order of shards
    shards: IntArray  # (n,) shard of each sample
    ordinals: IntArray  # (n,) position of each sample in its shard
    shuffled: IntArray  # (n,) position of each sample in the concatenated shards of `members`


class Order:
    """The order of all samples of one epoch, computed window by window.

    Shards are permuted and cut into windows of `window_shards`; the samples of a window are
    permuted together. The order depends only on the arguments. `identity` is the manifest's digest
    with the split and the kept classes.

    `num_kept_windows` is how many windows stay in memory: those of the largest slice so far, and
    at least two, because a slice usually lies in one window or in two neighbours.
    """

    def __init__(
        self, shard_sizes: IntArray, *, identity: str, seed: int, epoch: int, window_shards: int
    ) -> None:
        """`shard_sizes` (S,): samples in each shard, in the manifest's order; 0 is allowed."""
        self._stream = (identity, seed, epoch)
        self._window_shards = window_shards
        num_shards = len(shard_sizes)
        self._shards = permutation(num_shards, stream_key("shards", *self._stream))  # (S,)
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)[self._shards]  # (S,)
        ends = np.cumsum(self._sizes)
        last_of_window = np.minimum(
            np.arange(window_shards, num_shards + window_shards, window_shards), num_shards
        )
        # Position of each window's first sample, and of the end: (W + 1,).
        self._window_starts = np.concatenate([[0], ends[last_of_window - 1]]).astype(np.int64)
        self.num_kept_windows = 2
        self._windows: OrderedDict[int, Window] = OrderedDict()

    def __len__(self) -> int:
        return int(self._window_starts[-1])

    def slice(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Samples at positions `start` to `stop`: (shard numbers (n,), ordinals in them (n,))."""
        pieces = list(self.pieces(start, stop))
        self.num_kept_windows = max(self.num_kept_windows, len(pieces))
        shards, ordinals = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, inside in pieces:
            window = self.window(number)
            shards.append(window.shards[inside])
            ordinals.append(window.ordinals[inside])
        return np.concatenate(shards), np.concatenate(ordinals)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Cut positions `start` to `stop` at the borders of windows; no empty pieces."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        number = int(np.searchsorted(self._window_starts, start, side="right")) - 1
        while start < stop:
            first, end = self._window_starts[number : number + 2].tolist()
            upto = min(stop, end)
            if upto > start:
                yield number, slice(start - first, upto - first)
                start = upto
            number += 1

    def window(self, number: int) -> Window:
        """Window `number` of the epoch, counted from 0."""
        if number not in self._windows:
            first = number * self._window_shards
            sizes = self._sizes[first : first + self._window_shards]
            members = self._shards[first : first + self._window_shards]
            starts = np.cumsum(sizes) - sizes
            shuffled = permutation(int(sizes.sum()), stream_key("window", *self._stream, number))
            member = np.repeat(np.arange(len(sizes)), sizes)[shuffled]
            self._windows[number] = Window(
                members, members[member], shuffled - starts[member], shuffled
            )
            while len(self._windows) > self.num_kept_windows:
                self._windows.popitem(last=False)
        return self._windows[number]


@dataclass(frozen=True)
class BatchPlan:
    """The batch arithmetic of a run: how a global batch is divided, and how many there are."""

    num_samples: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    drop_last: bool

    @property
    def accumulation_steps(self) -> int:
        """Micro-steps per optimizer step on each rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_samples, self.global_batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    @property
    def left_out_per_epoch(self) -> int:
        """Samples of an epoch that no step reads: under `drop_last`, less than a global batch."""
        return self.num_samples % self.global_batch_size if self.drop_last else 0

    def locate(self, step: int) -> tuple[int, int, int]:
        """(epoch, first position, end position) of optimizer step `step`, counted over the run."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch_size
        return epoch, start, min(start + self.global_batch_size, self.num_samples)

    def in_words(self) -> str:
        """The arithmetic as one line of the log."""
        return (
            f"global batch {self.global_batch_size} = micro-batch {self.micro_batch_size} x "
            f"accumulation {self.accumulation_steps} x world {self.world_size}; "
            f"{self.num_samples} samples = {self.steps_per_epoch} steps an epoch, "
            f"{self.left_out_per_epoch} left out"
        )


def batch_plan(
    num_samples: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
    drop_last: bool = True,
) -> BatchPlan:
    """Check the batch arithmetic.

    Raises `UserError`, with the nearest numbers that divide, if a global batch does not divide by
    ranks x micro-batch, and if the split is smaller than one global batch.
    """
    unit = micro_batch_size * world_size
    if global_batch_size % unit:
        below = global_batch_size // unit * unit
        nearest = " or ".join(str(number) for number in (below, below + unit) if number)
        raise UserError(
            f"train.global_batch_size={global_batch_size} does not divide by {world_size} "
            f"{'rank' if world_size == 1 else 'ranks'} x micro-batch {micro_batch_size} = {unit}; "
            f"use {nearest}, or another train.micro_batch_size"
        )
    if num_samples < 1 or (drop_last and num_samples < global_batch_size):
        raise UserError(
            f"the training split has {num_samples} samples, fewer than one global batch of "
            f"{global_batch_size}; use a smaller train.global_batch_size or data.drop_last=false"
        )
    return BatchPlan(num_samples, global_batch_size, micro_batch_size, world_size, drop_last)


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
