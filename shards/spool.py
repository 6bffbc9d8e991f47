"""A temporary file of byte strings.

Which pictures are usable must be known before the split is counted, and decoding is nearly all of
packing's cost. So each picture is decoded and encoded once, its bytes wait here, and memory holds
only where they are.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple


class Span(NamedTuple):
    """Where one byte string is, in bytes from the start of the spool."""

    offset: int
    length: int


class Spool:
    """Append, then read at random. A context manager that removes its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._size = 0

    def add(self, content: bytes) -> Span:
        """Append `content`; returns where it is."""
        self._file.seek(self._size)
        self._file.write(content)
        span = Span(self._size, len(content))
        self._size += len(content)
        return span

    def read(self, span: Span) -> bytes:
        """The bytes at `span`."""
        self._file.seek(span.offset)
        content = self._file.read(span.length)
        assert len(content) == span.length, (span, len(content))
        return content

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
