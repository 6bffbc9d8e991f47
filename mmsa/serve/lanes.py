"""Batches that are computed at the same time, and the cores they share.

On a CPU two batches of one thread each compute more rows a second than one batch of two threads:
threads of one operator wait for each other after each. A batch that is alone has all cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

ThingT = TypeVar("ThingT")


class Lanes(Generic[ThingT]):
    """Things that one thread at a time may use, and threads of the CPU for whoever uses one."""

    def __init__(self, things: list[ThingT], threads: int) -> None:
        """`threads` are shared by those that compute."""
        self._free: SimpleQueue[ThingT] = SimpleQueue()
        for thing in things:
            self._free.put(thing)
        self._threads = threads
        self._lock = threading.Lock()
        self._busy = 0

    @contextmanager
    def one(self) -> Iterator[ThingT]:
        """A free thing, waited for if need be. Inside, torch uses this thread's share of the
        threads; one that began alone keeps all of them until it ends."""
        thing = self._free.get()
        with self._lock:
            self._busy += 1
            share = max(1, self._threads // self._busy)
        try:
            # The number belongs to the thread that sets it, but not before it was asked for: a
            # thread's first operator would take the number that any thread has set last.
            torch.get_num_threads()
            torch.set_num_threads(share)
            yield thing
        finally:
            with self._lock:
                self._busy -= 1
            self._free.put(thing)
