"""A directory that people may rename, remove or replace while a program writes to its path."""

from __future__ import annotations

import os
from pathlib import Path


class HeldFolder:
    """Remembers which directory `path` is now. Holds it open, so that nothing else gets its
    number."""

    def __init__(self, path: Path) -> None:
        """Where there is no directory at `path`, `is_there` is False until one is found."""
        self.path = path
        self._file = -1
        self._find()

    def is_there(self) -> bool:
        """Whether `path` is still the directory that was first found there."""
        if self._file < 0:
            return self._find()
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except OSError:
            return False

    def was_taken_away(self) -> bool:
        """Whether a directory was found at `path` that is not there any more."""
        return self._file >= 0 and not self.is_there()

    def _find(self) -> bool:
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Forget the directory."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()
