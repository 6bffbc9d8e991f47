"""The order of an epoch: every sample once, the same at any world size. Arithmetic, no I/O.

Permutations come from `mmsa/foundation/hashed_random.py`, not from a library's generator, whose
stream may change between versions.

**Groups.** With one group the order is that of the windows, one after another. With G groups, the
permuted shards are cut into G parts of equally many samples, each with windows of its own, and each
global batch of B takes B / G samples from each part. Ranks that read only their group's part of a
batch fetch only its shards (`plan.BatchPlan.block`), while the batches do not depend on the ranks.
The idea is that of the canonical nodes of MosaicML streaming.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mmsa.foundation.hashed_random import IntArray, permutation, stream_key

Piece: TypeAlias = tuple[int, slice]  # window number, positions inside that window


@dataclass(frozen=True)
class Window:
    """A few shards of an epoch, their n samples permuted together.

    A shard at the border of two groups is cut, and each has its part in a window.
    """

    members: IntArray  # (k,) the shards of the window, in the epoch's order of shards
    firsts: IntArray  # (k,) position of the first sample that belongs to the window, in its shard
    sizes: IntArray  # (k,) samples of each shard that belong to the window
    shards: IntArray  # (n,) shard of each sample
    ordinals: IntArray  # (n,) position of each sample in its shard
    shuffled: IntArray  # (n,) position of each sample in the concatenated parts of `members`


class Order:
    """The order of all samples of one epoch, computed window by window.

    Shards are permuted and cut into windows of `window_shards`; the samples of a window are
    permuted together. The order depends only on the arguments. `identity` is the manifest's digest
    with the split and the kept classes.

    `num_kept_windows` is how many windows stay in memory: those of the largest slice so far, and
    at least two, because a slice of one group usually lies in one window or in two neighbours.
    """

    def __init__(
        self,
        shard_sizes: IntArray,
        *,
        identity: str,
        seed: int,
        epoch: int,
        window_shards: int,
        groups: int = 1,
        global_batch_size: int = 1,
    ) -> None:
        """`shard_sizes` (S,): samples in each shard, in the manifest's order; 0 is allowed.

        The order depends on `global_batch_size`, a multiple of `groups`, with more than one group.
        """
        self._stream = (identity, seed, epoch)
        permuted = permutation(len(shard_sizes), stream_key("shards", *self._stream))  # (S,)
        sizes = np.asarray(shard_sizes, dtype=np.int64)[permuted]
        total = int(sizes.sum())
        # Of each group's first sample in the concatenated shards, and of the end: (G + 1,).
        self._borders = total * np.arange(groups + 1, dtype=np.int64) // groups
        first_parts = self._cut(permuted, sizes)
        windows = [
            np.arange(first, end, window_shards, dtype=np.int64)
            for first, end in zip(first_parts[:-1], first_parts[1:], strict=True)
        ]
        # The first part of each window, and the end: (W + 1,); the same in samples.
        self._window_parts = np.append(np.concatenate(windows), len(self._parts))
        self._window_starts = np.append(self._starts, total)[self._window_parts]
        self._share = global_batch_size // groups  # of a batch, from each group
        self._num_whole = total // global_batch_size  # batches
        self._lay_out_rest(global_batch_size)
        self.num_kept_windows = 2
        self._windows: OrderedDict[int, Window] = OrderedDict()

    def _cut(self, permuted: IntArray, sizes: IntArray) -> list[int]:
        """Cut the shards at the borders of the groups into parts.

        Returns the first part of each group, and the number of parts: (G + 1,).
        """
        ends = np.cumsum(sizes)
        starts = ends - sizes
        inner = self._borders[1:-1]
        holders = np.searchsorted(ends, inner)  # the shard that ends there or is cut
        is_cut = ends[holders] > inner
        cut = holders[is_cut]
        self._parts = np.insert(permuted, cut + 1, permuted[cut])  # (M,) shard of each part
        self._starts = np.insert(starts, cut + 1, inner[is_cut])  # (M,) in samples of the epoch
        self._firsts = np.insert(np.zeros_like(starts), cut + 1, (inner - starts[holders])[is_cut])
        self._sizes = np.append(self._starts[1:], self._borders[-1]) - self._starts
        earlier_cuts: IntArray = np.cumsum(is_cut) - is_cut
        return [0, *(holders + 1 + earlier_cuts).tolist(), len(self._parts)]

    def _lay_out_rest(self, global_batch_size: int) -> None:
        """What the whole batches leave of each group follows them, group by group."""
        read = self._num_whole * self._share
        left = np.diff(self._borders) - read  # (G,)
        self._rest_starts = self._num_whole * global_batch_size + np.cumsum(left) - left
        self._rest_sources = self._borders[:-1] + read

    def __len__(self) -> int:
        return int(self._borders[-1])

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
        for first, end in self._runs(start, stop):
            number = int(np.searchsorted(self._window_starts, first, side="right")) - 1
            while first < end:
                begin, upto = self._window_starts[number : number + 2].tolist()
                upto = min(end, upto)
                if upto > first:
                    yield number, slice(first - begin, upto - begin)
                    first = upto
                number += 1

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Positions `start` to `stop` as ranges of samples in the concatenated windows."""
        groups = len(self._borders) - 1
        if groups == 1:
            yield start, stop
            return
        share = self._share
        whole = self._num_whole * share * groups
        while start < min(stop, whole):
            batch, inside = divmod(start, share * groups)
            group, offset = divmod(inside, share)
            length = min(share - offset, stop - start)
            first = int(self._borders[group]) + batch * share + offset
            yield first, first + length
            start += length
        while start < stop:
            # The last group that starts here or before: those before it may have nothing left.
            group = int(np.searchsorted(self._rest_starts, start, side="right")) - 1
            first = int(self._rest_sources[group] + start - self._rest_starts[group])
            length = min(int(self._borders[group + 1]) - first, stop - start)
            yield first, first + length
            start += length

    def sizes_of_steps(
        self, shard_sizes: IntArray, first: IntArray, end: IntArray, groups: range
    ) -> IntArray:
        """(n,) the `shard_sizes` (S,) of the windows of steps `first[i]` up to `end[i]`, summed.

        Of the windows of `groups` alone, and in the last incomplete step of all groups. A shard
        that is cut at a border of two groups counts in both.
        """
        ends_of_parts = np.append(0, np.cumsum(shard_sizes[self._parts]))
        ends_of_windows = ends_of_parts[self._window_parts]  # (W + 1,), from 0 on
        found = np.zeros(len(first), dtype=np.int64)
        for group, (begin, stop) in enumerate(
            zip(self._borders[:-1], self._borders[1:], strict=True)
        ):
            low = first * self._share
            if group not in groups:
                low = np.maximum(low, self._num_whole * self._share)
            upto = np.minimum(begin + end * self._share, stop)
            is_read = upto > begin + low
            windows = np.searchsorted(self._window_starts, begin + low[is_read], side="right") - 1
            behind = np.searchsorted(self._window_starts, upto[is_read] - 1, side="right")
            found[is_read] += ends_of_windows[behind] - ends_of_windows[windows]
        return found

    def following(self, number: int) -> int | None:
        """The window that the group of window `number` reads next; None at the group's end."""
        begins = self._window_starts[number + 1]
        return None if begins in self._borders else number + 1

    def members(self, number: int) -> IntArray:
        """The shards (k,) of window `number`, without computing its permutation."""
        first, end = self._window_parts[number : number + 2].tolist()
        return self._parts[first:end]

    def window(self, number: int) -> Window:
        """Window `number` of the epoch, counted from 0 through all groups."""
        if number in self._windows:
            self._windows.move_to_end(number)
            return self._windows[number]
        first, end = self._window_parts[number : number + 2].tolist()
        sizes = self._sizes[first:end]
        members, firsts = self._parts[first:end], self._firsts[first:end]
        shuffled = permutation(int(sizes.sum()), stream_key("window", *self._stream, number))
        member = np.repeat(np.arange(len(sizes)), sizes)[shuffled]
        in_shard = firsts - (np.cumsum(sizes) - sizes)  # minus the member's start in the window
        self._windows[number] = Window(
            members, firsts, sizes, members[member], shuffled + in_shard[member], shuffled
        )
        while len(self._windows) > self.num_kept_windows:
            self._windows.popitem(last=False)
        return self._windows[number]
