"""Which shard a loader worker asks for just now, where its rank can see it.

A worker that hangs in a dead file system answers nothing. What it noted before it asked stands in
memory that both share: an anonymous file, so that it has no name that could be left behind.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

_BYTES = 256  # the length of a name in one byte, and the name


class PositionBoard:
    """A name that one process writes and another reads."""

    def __init__(self, descriptor: int) -> None:
        """Map the file, which must have the size that `board_file` gives it."""
        self._memory = mmap.mmap(descriptor, _BYTES)

    def write(self, name: str) -> None:
        content = name.encode("utf-8")[: _BYTES - 1]
        self._memory[: len(content) + 1] = bytes([len(content)]) + content

    def read(self) -> str:
        """The name last written, "" before the first."""
        return self._memory[1 : 1 + self._memory[0]].decode("utf-8", "replace")


_board: PositionBoard | None = None  # of this process, where it is a loader worker


def note(shard: str) -> None:
    """Say that this process is about to read of `shard`; nothing where no rank looks."""
    if _board is not None:
        _board.write(shard)


def note_on(board: PositionBoard) -> None:
    """Let `note` write on `board` from now on."""
    global _board
    _board = board


def anonymous_file(name: str) -> Any:
    """An open file that no directory holds; `name` shows in /proc alone."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def board_file() -> Any:
    """The file of a board, for both ends."""
    file = anonymous_file("mmsa-board")
    file.truncate(_BYTES)
    return file
