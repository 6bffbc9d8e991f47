"""Work shared among processes: tasks in, results out in the order of the tasks.

The output of a task depends on the task alone, so any number of workers gives the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from mmsa.errors import UserError
from shards.packing.workdir import ResumableError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 3  # tasks per worker: one running, the others so that it never waits


def default_workers() -> int:
    """The number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class WorkerPool:
    """`num_workers` processes, started with the first task; 1 does the work in this process.

    A context manager: on exit, waiting tasks are dropped and the processes end. They also end when
    this process is killed, so that none of them writes while a resumed packing is running.
    """

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise UserError(f"--workers {num_workers} must be at least 1")
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`work(task)` for each task, in order; at most a few tasks per worker are in flight.

        Raises what `work` raises, and `ResumableError` where a worker is killed (out of memory).
        """
        if self.num_workers == 1:
            yield from map(work, tasks)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(self._started().submit(work, task))
                while len(waiting) >= self.num_workers * _IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            told = (
                f"one of the {self.num_workers} workers was killed, perhaps because memory ran "
                "out. Use fewer --workers"
            )
            raise ResumableError(
                f"{told}, and --resume to keep the finished work", anew=told
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not fork: the parent may have threads. Not spawn: each worker would import everything.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(
                ["torch", "shards.packing.chunks", "shards.packing.tars"]
            )
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=context, initializer=_begin_worker
            )
        return self._pool

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches every process of the group; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # there is a process for each core
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
