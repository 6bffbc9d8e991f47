"""Reads whole shards into the page cache before their samples are read at random.

A sample is one read of some 20 kB at a random place of its shard. A local disk answers in
microseconds, but a network file system or a cold disk takes milliseconds for each. The same shards
read once from beginning to end, in large pieces, cost a hundredth of the requests.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

_PIECE = 8 << 20  # bytes
Window = tuple[int, int]  # epoch, number in it


class ReadAhead:
    """A thread that reads files of `directory` from beginning to end, in the order of the asking.

    What it reads is thrown away: the kernel keeps it. A file that cannot be read is left to the
    reader of its samples, who says what is wrong. The thread ends with the process.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._waiting: dict[Window, list[str]] = {}  # window -> names still to be read
        self._known: set[Window] = set()
        self._changed = threading.Condition()
        self._is_reading = False
        self._thread: threading.Thread | None = None

    def knows(self, window: Window) -> bool:
        """Whether `ask` was called for this window since it was last wanted."""
        return window in self._known

    def ask(self, window: Window, names: Sequence[str]) -> None:
        """Read these files of a window, after those that were asked for before."""
        with self._changed:
            self._known.add(window)
            self._waiting[window] = list(names)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            self._thread.start()

    def forget_all_but(self, windows: Collection[Window]) -> None:
        """Read nothing more of other windows: their samples have been read, or are being read."""
        with self._changed:
            for window in self._known - set(windows):
                self._known.remove(window)
                self._waiting.pop(window, None)

    def wait(self) -> None:
        """Return when all has been read that was asked for. For tests and benchmarks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_reading)

    def _run(self) -> None:
        buffer = memoryview(bytearray(_PIECE))
        while True:
            with self._changed:
                self._is_reading = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                window = next(iter(self._waiting))
                names = self._waiting[window]
                name = names.pop(0) if names else None
                if not names:
                    del self._waiting[window]
                self._is_reading = True
            if name is not None:
                self._read(self._directory / name, buffer)

    def _read(self, path: Path, buffer: memoryview) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return
        try:
            position = 0
            while True:
                # The advice lets the kernel send the requests of a whole piece at once.
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, position, _PIECE, os.POSIX_FADV_WILLNEED)
                count = os.preadv(descriptor, [buffer], position)
                if not count:
                    return
                position += count
        except OSError:
            return
        finally:
            os.close(descriptor)
