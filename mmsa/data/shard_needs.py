"""Which files a run reads from a step on, in the order of need, for the node's downloader.

Only the plan is asked, as it is when batches are made: no file is opened here.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsa.data.batch_requests import EvaluationRequests, TrainRequests
from mmsa.data.plan import BatchPlan
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.downloader import Downloader, Need, Task
from mmsa.data.storage.files import CachedFiles
from mmsa.process.runtime import World

_EARLY_SHARE = 0.01  # of an epoch's bytes


def run_name(run_dir: Path) -> str:
    """The name of a run's downloader in a cache: the same for all ranks of a node."""
    return hashlib.sha256(f"{socket.gethostname()}:{run_dir.absolute()}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrainNeeds:
    """The needs of the training split from the first step of `requests` on, which are those of a
    node's first rank; it has `num_ranks`. Picklable."""

    requests: TrainRequests
    num_ranks: int = 1

    def __call__(self) -> Iterator[Need]:
        order, order_epoch, before = None, -1, None
        for step in range(self.requests.start_step, self.requests.stop_step):
            epoch, _, _ = self.requests.plan.locate(step)
            if order is None or epoch != order_epoch:
                order, order_epoch = self.requests.order_of(epoch), epoch
            shards = self.requests.shards_of_step(order, step, self.num_ranks)
            if shards != before:
                yield Need(step, tuple(self.requests.reader.shards.files(shards)))
                before = shards


def start_downloads(
    train: TrainRequests, validation: EvaluationRequests | None, world: World, num_workers: int
) -> Downloader | None:
    """Start the downloader of this node for a run, on the node's first rank, and let the reader of
    `train` read its first samples before it has their shards.

    None on the others, and where the shards are read in place. Raises `UserError` if the cache's
    limit is smaller than what the readers of a step and the validation split need.
    """
    files = train.reader.files
    if not isinstance(files, CachedFiles):
        return None
    train.reader.read_early(_early_bytes(train, num_workers))
    if world.local_rank != 0:
        return None
    needs = TrainNeeds(train, world.local_world_size)
    always: tuple[Wanted, ...] = ()
    if validation is not None:  # in the order of text lengths: all of it is needed at once
        shards = validation.reader.shards
        always = tuple(shards.files(range(len(shards))))
    _check_room(files, train, always, world.local_world_size, num_workers)
    workers = range(max(1, num_workers))
    ranks = range(world.rank, world.rank + world.local_world_size)
    readers = tuple(f"{rank}-{worker}" for rank in ranks for worker in workers)
    return Downloader(Task(files, needs, always, readers))


def _check_room(
    files: CachedFiles,
    train: TrainRequests,
    always: tuple[Wanted, ...],
    num_ranks: int,
    num_workers: int,
) -> None:
    if files.cache.limit_bytes is None:
        return
    validation_bytes = sum(file.size or 0 for file in always)
    files.check_room(
        most_bytes_at_once(train, num_ranks, num_workers) + validation_bytes,
        what="a window and the validation split",
        remedy="use a larger one, fewer data.window_shards, or fewer data.num_workers, which read "
        "ahead of each other",
    )


def _early_bytes(train: TrainRequests, num_workers: int) -> int:
    """What one reader may fetch twice: a part of what it reads in the rest of its first epoch."""
    plan, reader = train.plan, train.reader
    epoch_bytes = reader.shards.num_bytes(np.flatnonzero(reader.sizes))
    to_come = min(train.stop_step - train.start_step, plan.steps_per_epoch) / plan.steps_per_epoch
    return int(_EARLY_SHARE * epoch_bytes * to_come) // (plan.world_size * max(1, num_workers))


def most_bytes_at_once(train: TrainRequests, num_ranks: int, num_workers: int) -> int:
    """The most bytes of shards that the readers of a node need at the same time, in any step of the
    run: those of the slowest one, and those that the others have open some steps later.

    `train` is that of the first of the node's `num_ranks`. A shard that two groups or two epochs
    share at the same time counts twice.
    """
    plan = train.plan
    steps, lead = plan.steps_per_epoch, _lead(plan, num_ranks, num_workers)
    groups = plan.groups_of(range(train.rank, train.rank + num_ranks))
    sizes = train.reader.shards.bytes_with_index() * (train.reader.sizes > 0)
    all_bytes = int(sizes.sum())
    if lead >= steps:
        return all_bytes
    most, carried = 0, np.zeros(0, dtype=np.int64)
    for epoch in range(train.start_step // steps, -(-train.stop_step // steps)):
        order, start = train.order_of(epoch), max(0, train.start_step - epoch * steps)
        stop = min(steps, train.stop_step - epoch * steps)
        # Of the last steps of the epoch before: what is already needed of this one.
        ends = np.minimum(np.arange(lead - len(carried), lead) + 1, stop)
        carried += order.sizes_of_steps(sizes, np.zeros_like(ends), ends, groups)
        first = np.arange(start, stop)
        needed = order.sizes_of_steps(sizes, first, np.minimum(first + 1 + lead, stop), groups)
        most = max(most, int(needed.max(initial=0)), int(carried.max(initial=0)))
        carried = needed[-lead:] if lead else carried
    return min(most, all_bytes)


def _lead(plan: BatchPlan, num_ranks: int, num_workers: int) -> int:
    """By how many steps the fastest reader of a node may be ahead of the slowest one."""
    from mmsa.data.loading.workers import AHEAD  # imports torch, which a downloader does not need

    of_workers = -(-AHEAD * num_workers // plan.accumulation_steps)
    # A rank waits for the others at the end of a step, with the first batch of the next one.
    return of_workers + (num_ranks > 1)
