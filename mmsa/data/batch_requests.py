"""Which samples make up each micro-batch of a rank, by the arithmetic of plan.py.

A request names its samples by (shard, ordinal). Only index files are opened here. Stages are
top-level picklable callables, because loader workers are started by forkserver. Legend: B batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mmsa.data.order import Order
from mmsa.data.plan import BatchPlan, Block, deal, evaluation_batches, evaluation_order
from mmsa.data.reader import SplitReader
from mmsa.data.storage.readahead import ReadAhead
from mmsa.foundation.hashed_random import IntArray


@dataclass(frozen=True)
class Request:
    """The samples of one micro-batch of one rank. Rows past `num_real` have weight 0."""

    epoch: int
    shards: IntArray  # (B,)
    ordinals: IntArray  # (B,)
    num_real: int


@dataclass
class Share:
    """The first stage: every `num_workers`-th request, from number `worker` on.

    A loader takes batches from its workers round-robin, so the batches come in the order of the
    requests.
    """

    requests: TrainRequests | EvaluationRequests
    worker: int
    num_workers: int

    def __call__(self) -> Iterator[Request]:
        return self.requests(self.worker, self.num_workers)


@dataclass
class TrainRequests:
    """The micro-batches of `rank` from optimizer step `start_step` up to `stop_step`.

    Called with a worker's number it yields that worker's share. Steps in which the worker has no
    micro-batch cost it nothing.
    """

    reader: SplitReader
    plan: BatchPlan
    rank: int
    seed: int
    window_shards: int
    bucket_by_length: bool
    start_step: int
    stop_step: int
    # (number of this rank on its machine, ranks on it): whole shards are read ahead of their use.
    read_ahead: tuple[int, int] | None = None

    def __call__(self, worker: int = 0, num_workers: int = 1) -> Iterator[Request]:
        order: Order | None = None
        ahead: _ShardsAhead | None = None
        if self.read_ahead is not None and not self.reader.is_cached:
            ahead = _ShardsAhead(self.reader, *self.read_ahead, worker, num_workers)
        order_epoch, text_lengths = -1, None
        accumulation = self.plan.accumulation_steps
        name = f"{self.rank}-{worker}"  # for the downloader of a cache
        self.reader.at_step(name, self.start_step)
        for step in range(self.start_step, self.stop_step):
            number = (step - self.start_step) * accumulation  # of the step's first request
            mine = range((worker - number) % num_workers, accumulation, num_workers)
            if not mine:
                continue
            epoch, start, stop = self.plan.locate(step)
            if order is None or epoch != order_epoch:
                order, order_epoch = self.order_of(epoch), epoch
                text_lengths = _TextLengths(self.reader, order) if self.bucket_by_length else None
            block = self.plan.block(self.rank, start, stop)
            if ahead is not None:
                ahead.follow(order, epoch, block)
            shards, ordinals = order.slice(block.start, block.stop)
            if self.reader.is_cached:
                self.reader.at_step(name, step, self.shards_of_step(order, step))
            # This step and the rest of its windows read these shards' records again.
            self.reader.keep_indexes(self.window_shards * order.num_kept_windows)
            lengths = None
            if text_lengths is not None:
                lengths = text_lengths.slice(block.start, block.stop)
            dealt = deal(lengths, block.stop - block.start, block.plan, block.rank)
            for micro_step in mine:
                positions = dealt[micro_step]
                # An empty micro-batch of a last incomplete step becomes one row of weight 0,
                # because all ranks must run the same number of forward passes.
                rows = positions if len(positions) else np.zeros(1, dtype=np.int64)
                yield Request(epoch, shards[rows], ordinals[rows], len(positions))
        self.reader.at_step(name, self.stop_step)

    def shards_of_step(self, order: Order, step: int, num_ranks: int = 1) -> tuple[int, ...]:
        """The shards, in the order of the epoch, whose samples this rank may read in `step`, or
        this one and those that follow it, `num_ranks` together."""
        _, start, stop = self.plan.locate(step)
        blocks = [self.plan.block(self.rank + other, start, stop) for other in range(num_ranks)]
        windows = dict.fromkeys(
            number
            for first, end in dict.fromkeys((block.start, block.stop) for block in blocks)
            for number, _ in order.pieces(first, end)
        )
        members = (shard for number in windows for shard in order.members(number).tolist())
        return tuple(dict.fromkeys(shard for shard in members if self.reader.sizes[shard]))

    def order_of(self, epoch: int) -> Order:
        """The order in which `epoch` reads the samples."""
        return Order(
            self.reader.sizes,
            identity=self.reader.identity,
            seed=self.seed,
            epoch=epoch,
            window_shards=self.window_shards,
            groups=self.plan.groups,
            global_batch_size=self.plan.global_batch_size,
        )


class _ShardsAhead:
    """Reads this worker's part of the shards of the windows in use, and of those that follow."""

    def __init__(
        self,
        reader: SplitReader,
        local_rank: int,
        local_ranks: int,
        worker: int,
        num_workers: int,
    ) -> None:
        self._shards = reader.shards
        self._local = (local_rank, local_ranks)
        self._workers = (worker, num_workers)
        self._files = ReadAhead(str(reader.location))

    def follow(self, order: Order, epoch: int, block: Block) -> None:
        """Ask for what `block`, and after it its windows and the next ones, will read."""
        current = [number for number, _ in order.pieces(block.start, block.stop)]
        following = [order.following(number) for number in current]
        numbers = dict.fromkeys([*current, *(each for each in following if each is not None)])
        wanted = [(epoch, each) for each in numbers]
        self._files.forget_all_but(wanted)
        # The ranks of this machine that read the same block share its shards.
        number, ranks = self._local
        if block.plan.world_size < ranks:
            number, ranks = block.rank, block.plan.world_size
        worker, num_workers = self._workers
        for window in wanted:
            if not self._files.knows(window):
                members = dict.fromkeys(order.members(window[1]).tolist())
                mine = list(members)[number * num_workers + worker :: ranks * num_workers]
                self._files.ask(window, [self._shards.tar(shard) for shard in mine])


class _TextLengths:
    """Text lengths along an order, looked up in the index files once per window, not per step."""

    def __init__(self, reader: SplitReader, order: Order) -> None:
        self._reader = reader
        self._order = order
        self._windows: OrderedDict[int, IntArray] = OrderedDict()

    def slice(self, start: int, stop: int) -> IntArray:
        """The lengths (n,), in characters, of the samples at positions `start` to `stop`."""
        pieces = self._order.pieces(start, stop)
        return np.concatenate([self._window(number)[inside] for number, inside in pieces])

    def _window(self, number: int) -> IntArray:
        """The lengths (n,) of the samples of a window, in their order."""
        if number in self._windows:
            self._windows.move_to_end(number)
            return self._windows[number]
        window = self._order.window(number)
        ends = window.firsts + window.sizes
        members = zip(window.members.tolist(), window.firsts.tolist(), ends.tolist(), strict=True)
        lengths = [
            self._reader.records(shard)["text_length"][first:end]
            for shard, first, end in members
            if end > first
        ]
        self._windows[number] = np.concatenate(lengths)[window.shuffled]
        while len(self._windows) > self._order.num_kept_windows:
            self._windows.popitem(last=False)
        return self._windows[number]


@dataclass
class EvaluationRequests:
    """The evaluation batches of `rank`: the whole split once, or endlessly with `repeat`.

    Every batch has `batch_size` rows. The last real batch is padded with rows of weight 0, and a
    rank without a batch gets one of weight 0.
    """

    reader: SplitReader
    batch_size: int
    world_size: int
    rank: int
    repeat: bool = False

    def __len__(self) -> int:
        """The number of batches in one pass, the same on every rank."""
        num_batches = -(-len(self.reader) // self.batch_size)
        return -(-num_batches // self.world_size)

    def __call__(self, worker: int = 0, num_workers: int = 1) -> Iterator[Request]:
        """Every `num_workers`-th request, from number `worker` on."""
        return islice(self._all(), worker, None, num_workers)

    def _all(self) -> Iterator[Request]:
        places, records = self.reader.all_records()
        places = places[evaluation_order(records["text_length"], records["key_hash"])]
        del records  # 40 bytes per sample, which would stay as long as the run validates
        while len(places):  # repeating an empty split would never end
            for start, stop in evaluation_batches(
                len(places),
                batch_size=self.batch_size,
                world_size=self.world_size,
                rank=self.rank,
            ):
                rows = np.minimum(np.arange(start, start + self.batch_size), max(stop - 1, 0))
                yield Request(0, places[rows, 0], places[rows, 1], stop - start)
            if not self.repeat:
                return
