"""A directory that another process or a person may rename, remove or replace while it is used."""

from __future__ import annotations

import os
from pathlib import Path


class HeldDirectory:
    """Tells whether `path` is still the directory that was first found there. A context manager.

    If it is after a reader has read its files by name, then all of them were files of this one
    directory: a directory that was renamed away or replaced does not come back. An open descriptor
    keeps the system from giving its inode to another one.
    """

    def __init__(self, path: Path) -> None:
        """`path` must not be a link that may be replaced.

        Where no directory is at `path`, `is_there` is False until one is found.
        """
        self.path = path
        self._descriptor = -1
        self._find()

    def is_there(self) -> bool:
        """Whether `path` is still the directory that was first found there."""
        if self._descriptor < 0:
            return self._find()
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def was_taken_away(self) -> bool:
        """Whether a directory was found at `path` that is not there any more."""
        return self._descriptor >= 0 and not self.is_there()

    def close(self) -> None:
        """Forget the directory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _find(self) -> bool:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def __enter__(self) -> HeldDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
