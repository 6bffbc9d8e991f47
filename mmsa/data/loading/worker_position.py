"""Which shard a loader worker is reading, kept where its rank can see it.

A worker that hangs in a dead file system cannot answer any more. Before each read it therefore
records the file name in memory shared with its rank: an anonymous file, whose name cannot be left
behind anywhere.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

_BYTES = 256  # the length of a name in one byte, and the name


class SharedPosition:
    """A file name that one process writes and another reads."""

    def __init__(self, descriptor: int) -> None:
        """Map the file, which must have the size that `position_file` gives it."""
        self._memory = mmap.mmap(descriptor, _BYTES)

    def write(self, name: str) -> None:
        content = name.encode("utf-8")[: _BYTES - 1]
        self._memory[: len(content) + 1] = bytes([len(content)]) + content

    def read(self) -> str:
        """The name last written; "" before the first."""
        return self._memory[1 : 1 + self._memory[0]].decode("utf-8", "replace")


_position: SharedPosition | None = None  # of this process, if it is a loader worker


def record_position(file_name: str) -> None:
    """Record that this process is about to read `file_name`; does nothing outside a worker."""
    if _position is not None:
        _position.write(file_name)


def record_positions_in(position: SharedPosition) -> None:
    """Make `record_position` write to `position` from now on."""
    global _position
    _position = position


def anonymous_file(name: str) -> Any:
    """An open file that is in no directory; `name` appears only in /proc."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def position_file() -> Any:
    """An anonymous file of the size of a `SharedPosition`, for both processes to map."""
    file = anonymous_file("mmsa-position")
    file.truncate(_BYTES)
    return file
