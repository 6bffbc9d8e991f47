"""A directory that another process may remove or replace while its files are read."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class HeldDirectory:
    """Tells whether a directory is still the one that was opened. A context manager.

    If it is in place after a reader has read its files by name, then all of them were files of this
    one directory: a directory that was renamed away or replaced does not come back. An open
    descriptor keeps the system from giving its inode to another one.
    """

    def __init__(self, path: Path) -> None:
        """`path` must not be a link that may be replaced. Raises `OSError`."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def in_place(self) -> bool:
        """Whether `path` is still this directory."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def __enter__(self) -> HeldDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
