"""Opening files that someone else has named: a named pipe or a device must not be waited for."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path


class NotRegular(OSError):
    """The path leads to a directory, a named pipe or a device. `strerror` says which."""


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; its caller closes it.

    Opening a named pipe in the usual way would wait for a writer, perhaps forever. Raises
    `NotRegular` for anything but a regular file, other `OSError`s where it cannot be opened, and
    `ValueError` for a name that no file can have (a NUL, half a surrogate pair).
    """
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    """For `open`, which owns the descriptor from then on: an interruption, at whatever line it
    comes, then never closes it twice, which would be an `OSError` of its own."""
    # Without O_NONBLOCK the open itself would wait. It does not change how a regular file is read.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
    raise NotRegular(0, f"it is {kind}, expected a file", path)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; raises as `open_regular` does."""
    with open_regular(Path(path)) as file:
        return file.read()
