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
                order, order_epoch = self.requests._order(epoch), epoch
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
    limit is smaller than what one step and the validation split need.
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
    files.check_room([*always, *_largest_need(needs)], what="a window and the validation split")
    workers = range(max(1, num_workers))
    ranks = range(world.rank, world.rank + world.local_world_size)
    readers = tuple(f"{rank}-{worker}" for rank in ranks for worker in workers)
    return Downloader(Task(files, needs, always, readers))


def _early_bytes(train: TrainRequests, num_workers: int) -> int:
    """What one reader may fetch twice: a part of what it reads in the rest of its first epoch."""
    plan, reader = train.plan, train.reader
    epoch_bytes = reader.shards.num_bytes(np.flatnonzero(reader.sizes))
    to_come = min(train.stop_step - train.start_step, plan.steps_per_epoch) / plan.steps_per_epoch
    return int(_EARLY_SHARE * epoch_bytes * to_come) // (plan.world_size * max(1, num_workers))


def _largest_need(needs: TrainNeeds) -> tuple[Wanted, ...]:
    """The files of the step of the first epoch that needs most bytes at once."""
    plan = needs.requests.plan
    epoch, _, _ = plan.locate(needs.requests.start_step)
    largest: tuple[Wanted, ...] = ()
    most = 0
    for need in needs():
        if plan.locate(need.step)[0] != epoch:
            break
        needed = sum(file.size or 0 for file in need.files)
        if needed > most:
            most, largest = needed, need.files
    return largest
