"""Requests: which samples make up each micro-batch of a rank, by the arithmetic of plan.py.

A request names places (shard, ordinal); only index files are opened here. Stages are top-level
picklable callables, because loader workers are started by forkserver. Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mmsa.data.plan import (
    BatchPlan,
    IntArray,
    Order,
    deal,
    evaluation_batches,
    evaluation_order,
)
from mmsa.data.reader import SplitReader


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

    requests: Callable[[], Iterator[Request]]
    worker: int
    num_workers: int

    def __call__(self) -> Iterator[Request]:
        return islice(self.requests(), self.worker, None, self.num_workers)


@dataclass
class TrainRequests:
    """The micro-batches of `rank` from optimizer step `start_step` up to `stop_step`."""

    reader: SplitReader
    plan: BatchPlan
    rank: int
    seed: int
    window_shards: int
    bucket_by_length: bool
    start_step: int
    stop_step: int

    def __call__(self) -> Iterator[Request]:
        order, order_epoch = None, -1
        for step in range(self.start_step, self.stop_step):
            epoch, start, stop = self.plan.locate(step)
            if order is None or epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            shards, ordinals = order.slice(start, stop)
            # The samples are read soon after their lengths: keep what this step and the rest of
            # its window ask for again.
            touched = np.unique(shards)
            self.reader.open_indexes = max(
                self.reader.open_indexes, 2 * self.window_shards, len(touched)
            )
            lengths = None
            if self.bucket_by_length:
                lengths = self._text_lengths(touched, shards, ordinals)
            for positions in deal(lengths, len(shards), self.plan, self.rank):
                # An empty micro-batch of a last incomplete step: one row of weight 0, because all
                # ranks must run equally many forward passes.
                rows = positions if len(positions) else np.zeros(1, dtype=np.int64)
                yield Request(epoch, shards[rows], ordinals[rows], len(positions))

    def _order(self, epoch: int) -> Order:
        return Order(
            self.reader.sizes,
            identity=self.reader.identity,
            seed=self.seed,
            epoch=epoch,
            window_shards=self.window_shards,
        )

    def _text_lengths(self, touched: IntArray, shards: IntArray, ordinals: IntArray) -> IntArray:
        lengths = np.empty(len(shards), dtype=np.int64)
        for shard in touched:
            rows = shards == shard
            lengths[rows] = self.reader.records(int(shard))["text_length"][ordinals[rows]]
        return lengths


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

    def __call__(self) -> Iterator[Request]:
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
