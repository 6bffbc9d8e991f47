"""The downloader of a node: a process that fetches what the plan needs, ahead of the readers.

It is spawned, because the clients of stores have threads, which do not survive a fork. Readers and
downloader speak by files in `CACHE/runs/RUN/`: readers write the step that they read (`at-RANK-
WORKER`), the downloader writes what the windows need (`sight.json`, which keeps those files from
being deleted) and what it could not fetch (`failed.json`). Its lock says that it lives; without it,
readers fetch for themselves.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.fetching import NoRoom, fetch
from mmsa.data.storage.files import CachedFiles
from mmsa.data.storage.sources import StoreError
from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_status
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.hidden_main import without_main_module

_AT_ONCE = 8  # transfers, of the files of one need
_AT_LEAST = 2  # transfers, if necessary of files that are needed later
_AHEAD = 4  # changes of what is needed that are fetched ahead: two windows and their borders
_POLL_S = 0.05
_LOOK_AGAIN_S = 2.0  # how often it is checked that what is needed is still there
_TRY_AGAIN_S = 2.0  # after a failure of what no reader waits for
_LOCK_WAIT_S = 30.0  # for a downloader of the same run that is just ending
_RESTARTS = 100


@dataclass(frozen=True)
class Need:
    """From `step` on, until the next one: the files that are read, in the order of need."""

    step: int
    files: tuple[Wanted, ...]


@dataclass(frozen=True)
class Task:
    """What a node's downloader does. Picklable.

    `needs()` are in the order of their steps. `always` is needed at any step, after those of the
    first. `readers` is how many of the node report their step.
    """

    files: CachedFiles
    needs: Callable[[], Iterable[Need]]
    always: tuple[Wanted, ...]
    readers: tuple[str, ...]


class Downloader:
    """Runs a `Task` in a process of its own, started again if it is killed. Ends with this one."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._closed = False
        self._connection: Connection | None = None
        self.pid: int | None = None
        _claim(task)
        self._start()
        # At exit, multiprocessing sends SIGTERM, which the process ignores, and waits for it.
        atexit.register(self.close)
        threading.Thread(target=self._watch, name="downloads", daemon=True).start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, self._task), name="downloader", daemon=True
        )
        with without_main_module():
            self._process.start()
        theirs.close()
        self._connection, self.pid = ours, self._process.pid

    def _watch(self) -> None:
        for _ in range(_RESTARTS):
            self._process.join()
            if self._closed or self._process.exitcode == 0:
                return
            time.sleep(1)
            if not self._closed:
                self._start()

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._process.kill()  # its files are whole or temporary at any moment
        atexit.unregister(self.close)


def _claim(task: Task) -> None:
    """Make the folder of the run, before a reader reports there, without an earlier run's reports.

    Not by the process, which starts later: it would remove the steps of readers that have begun.
    """
    run = task.files.run
    assert run is not None
    run.mkdir(parents=True, exist_ok=True)
    for old in run.glob("at-*"):
        old.unlink(missing_ok=True)


def _main(parent: Connection, task: Task) -> None:
    """The process: ends when its parent does, whose end of the pipe then closes."""
    # Signals to the whole process group are for the ranks, which need files until they have saved.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    run = task.files.run
    assert run is not None
    with suppress(BlockingIOError), FileLock(run / "lock", wait_s=_LOCK_WAIT_S):
        _Work(task, run).run()
    os._exit(0)  # without waiting for threads of the client


def _end_with(parent: Connection) -> None:
    with suppress(EOFError, OSError):
        parent.recv()
    os._exit(0)


@dataclass
class _Work:
    """The loop of the downloader."""

    task: Task
    folder: Path
    window: deque[Need] = field(default_factory=deque)  # the present need, and those ahead
    transfers: dict[str, tuple[Future[None], bool]] = field(default_factory=dict)  # urgent?
    failed: dict[str, str] = field(default_factory=dict)  # what a reader waits for, and why
    not_before_s: dict[str, float] = field(default_factory=dict)  # the next try of what is ahead
    present: set[str] = field(default_factory=set)
    looked_s: float = 0.0
    published: tuple[frozenset[str], frozenset[str]] | None = None

    def run(self) -> None:
        """Fetch until every need is over."""
        self._write("failed.json", self.failed)
        needs = iter(self.task.needs())
        self._advance(needs, 0)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
            while True:
                self._advance(needs, self._step())
                now, ahead = self._in_order()
                self._publish(now, ahead)
                self._collect()
                self._submit_in_turn(pool)
                time.sleep(_POLL_S)

    def _step(self) -> int:
        """The step that the last of the readers is reading; 0 until all have begun."""
        steps = []
        for reader in self.task.readers:
            try:
                steps.append(int((self.folder / f"at-{reader}").read_text()))
            except (OSError, ValueError):
                return 0
        return min(steps, default=0)

    def _advance(self, needs: Iterator[Need], step: int) -> None:
        while len(self.window) > 1 and self.window[1].step <= step:
            self.window.popleft()
        while len(self.window) <= _AHEAD:
            following = next(needs, None)
            if following is None:
                return
            self.window.append(following)
            while len(self.window) > 1 and self.window[1].step <= step:
                self.window.popleft()

    def _in_order(self) -> tuple[list[Wanted], list[Wanted]]:
        """(what is needed now, what is needed next), the first first."""
        now = [*(self.window[0].files if self.window else ()), *self.task.always]
        known = {one.sha256 for one in now}
        ahead = []
        for need in list(self.window)[1:]:
            for one in need.files:
                if one.sha256 not in known:
                    known.add(one.sha256)
                    ahead.append(one)
        return now, ahead

    def _publish(self, now: Sequence[Wanted], ahead: Sequence[Wanted]) -> None:
        sight = frozenset(f.sha256 for f in now), frozenset(f.sha256 for f in ahead)
        if sight != self.published:
            self._write("sight.json", {"now": sorted(sight[0]), "ahead": sorted(sight[1])})
            self.published = sight
            self.present.intersection_update(sight[0] | sight[1])
        if time.monotonic() - self.looked_s > _LOOK_AGAIN_S:
            self.looked_s = time.monotonic()
            self.present.clear()

    def _collect(self) -> None:
        for digest in [digest for digest, (one, _) in self.transfers.items() if one.done()]:
            transfer, urgent = self.transfers.pop(digest)
            error = transfer.exception()
            if not urgent:
                # No reader waits for it: it is tried again, a final answer when it is needed.
                self.not_before_s[digest] = self._next_try_s(error)
            elif error is not None:
                said = str(error) if isinstance(error, UserError) else repr(error)
                self.failed[digest] = said
                self._write("failed.json", self.failed)

    def _next_try_s(self, error: BaseException | None) -> float:
        is_limited = self.task.files.cache.limit_bytes is not None
        if error is None or (isinstance(error, NoRoom) and is_limited):
            return 0.0  # the first in order: a later one would take its room
        is_final = isinstance(error, StoreError) and error.final
        return math.inf if is_final else time.monotonic() + _TRY_AGAIN_S

    def _submit_in_turn(self, pool: ThreadPoolExecutor) -> None:
        """Begin transfers in the order of need.

        While files of one need are under way, what is needed later would take their bandwidth. It
        is begun only where a single connection is left, which may not use all of the bandwidth.
        """
        present, *later = [need.files for need in self.window] or [()]
        turns = [(present, True), (self.task.always, True), *((files, False) for files in later)]
        at_once = _AT_ONCE
        for files, urgent in turns:
            if not self._submit(pool, files, urgent=urgent, at_once=at_once):
                return
            if any(one.sha256 in self.transfers for one in files):
                at_once = _AT_LEAST

    def _submit(
        self, pool: ThreadPoolExecutor, wanted: Sequence[Wanted], *, urgent: bool, at_once: int
    ) -> bool:
        """Begin transfers; False if what is needed later must wait until the next look."""
        files = self.task.files
        for one in wanted:
            if len(self.transfers) >= at_once:
                return False
            digest = one.sha256
            if digest in self.present or digest in self.transfers or digest in self.failed:
                continue
            if not urgent and time.monotonic() < self.not_before_s.get(digest, 0.0):
                continue
            if files.cache.path(digest).exists():
                self.present.add(digest)
                continue
            transfer = pool.submit(
                fetch, files.cache, files.store, one, patience_s=files.patience_s, urgent=urgent
            )
            self.transfers[digest] = transfer, urgent
            if not urgent and files.cache.limit_bytes is not None:
                return False  # one at a time: a later one must not take an earlier one's room
        return True

    def _write(self, name: str, content: object) -> None:
        with suppress(OSError):
            if self.folder.is_dir():  # a cache that was removed stays so
                write_status(self.folder / name, content)
