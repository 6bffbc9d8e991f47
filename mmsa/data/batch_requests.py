"""Requests: which samples make up each micro-batch of a rank, by the arithmetic of plan.py.

A request names places (shard, ordinal); only index files are opened here. Stages are top-level
picklable callables, because loader workers are started by forkserver. Legend: B batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mmsa.data.plan import BatchPlan, Order, deal, evaluation_batches, evaluation_order
from mmsa.data.reader import SplitReader
from mmsa.hashed_random import IntArray


@dataclass(frozen=True)
class Request:
    """The samples of one micro-batch of one rank. Rows past `num_real` have weight 0."""

    epoch: int
    shards: IntArray  # (B,)
    ordinals: IntArray  # (B,)
    num_real: int


@dataclass
class Share:
    """Every n-th request for worker n of n: a loader collects from its workers in turn, so the
    order of the requests is the order of the batches."""

    requests: TrainRequests | EvaluationRequests
    worker: int
    num_workers: int

    def __call__(self) -> Iterator[Request]:
        return self.requests(self.worker, self.num_workers)


@dataclass
class TrainRequests:
    """The micro-batches of `rank` from optimizer step `start_step` up to `stop_step`.

    Called with a worker's number it yields that worker's share, and does no work for steps of
    which the worker has no micro-batch.
    """

    reader: SplitReader
    plan: BatchPlan
    rank: int
    seed: int
    window_shards: int
    bucket_by_length: bool
    start_step: int
    stop_step: int

    def __call__(self, worker: int = 0, num_workers: int = 1) -> Iterator[Request]:
        order: Order | None = None
        order_epoch, lengths = -1, None
        accumulation = self.plan.accumulation_steps
        for step in range(self.start_step, self.stop_step):
            number = (step - self.start_step) * accumulation  # of the step's first request
            mine = range((worker - number) % num_workers, accumulation, num_workers)
            if not mine:
                continue
            epoch, start, stop = self.plan.locate(step)
            if order is None or epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
                lengths = _TextLengths(self.reader, order) if self.bucket_by_length else None
            shards, ordinals, step_lengths = self._samples(order, lengths, start, stop)
            dealt = deal(step_lengths, stop - start, self.plan, self.rank)
            for micro_step in mine:
                positions = dealt[micro_step]
                # An empty micro-batch of a last incomplete step: one row of weight 0, because all
                # ranks must run equally many forward passes.
                rows = positions if len(positions) else np.zeros(1, dtype=np.int64)
                yield Request(epoch, shards[rows], ordinals[rows], len(positions))

    def _samples(
        self, order: Order, lengths: _TextLengths | None, start: int, stop: int
    ) -> tuple[IntArray, IntArray, IntArray | None]:
        """A slice of the order: (shards (n,), ordinals (n,), text lengths (n,) where asked)."""
        pieces = list(order.pieces(start, stop))
        # The samples are read soon after their lengths: keep what this step and the rest of its
        # window ask for again.
        self.reader.open_indexes = max(
            self.reader.open_indexes, self.window_shards * max(2, len(pieces))
        )
        shards, ordinals, found = [], [], []
        for number, inside in pieces:
            window = order.window(number)
            shards.append(window.shards[inside])
            ordinals.append(window.ordinals[inside])
            if lengths is not None:
                found.append(lengths.window(number)[inside])
        return (
            np.concatenate(shards),
            np.concatenate(ordinals),
            np.concatenate(found) if found else None,
        )

    def _order(self, epoch: int) -> Order:
        return Order(
            self.reader.sizes,
            identity=self.reader.identity,
            seed=self.seed,
            epoch=epoch,
            window_shards=self.window_shards,
        )


class _TextLengths:
    """Text lengths along an order; the index files are asked once a window, not once a step."""

    def __init__(self, reader: SplitReader, order: Order) -> None:
        self._reader = reader
        self._order = order
        self._windows: OrderedDict[int, IntArray] = OrderedDict()

    def window(self, number: int) -> IntArray:
        """The lengths (n,), in characters, of the samples of a window in their order."""
        if number not in self._windows:
            window = self._order.window(number)
            lengths = [
                self._reader.records(shard)["text_length"]
                for shard in window.members.tolist()
                if self._reader.sizes[shard]
            ]
            self._windows[number] = np.concatenate(lengths)[window.shuffled]
            while len(self._windows) > 2:
                self._windows.popitem(last=False)
        return self._windows[number]


@dataclass
class EvaluationRequests:
    """The evaluation batches of `rank`, the whole split once; again and again with `repeat`.

    Every batch has `batch_size` rows; the last real one is filled up with rows of weight 0, and a
    rank without a batch gets one of weight 0.
    """

    reader: SplitReader
    batch_size: int
    world_size: int
    rank: int
    repeat: bool = False

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank."""
        num_batches = -(-len(self.reader) // self.batch_size)
        return -(-num_batches // self.world_size)

    def __call__(self, worker: int = 0, num_workers: int = 1) -> Iterator[Request]:
        """All requests, or every `num_workers`-th from number `worker` on."""
        return islice(self._all(), worker, None, num_workers)

    def _all(self) -> Iterator[Request]:
        places, records = self.reader.all_records()
        places = places[evaluation_order(records["text_length"], records["key_hash"])]
        del records  # 40 bytes a sample, for as long as the run validates
        while len(places):  # an empty split ends at once, instead of repeating nothing for ever
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
