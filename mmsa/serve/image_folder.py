"""The folder of `POST /test_model`: a relative path leads to a file below it, or to nothing.

Each part of a path is opened from the directory before it and no link is followed, so that what is
checked is what is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from mmsa.errors import UserError
from mmsa.serve.problems import Problem

_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ImageFolder:
    """Reads the pictures below `folder`, of at most `max_bytes` each."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        try:
            # Kept open: replacing the folder by a link later changes nothing.
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"--images {folder} cannot be opened ({error.strerror}); give a folder of pictures"
            ) from None
        self._max_bytes = max_bytes

    def read(self, path: str) -> bytes:
        """The bytes of the picture at `path`. Raises `Problem`: 404, and 413 if it is too large."""
        parts = PurePosixPath(path).parts
        inside = parts and not path.startswith("/") and ".." not in parts and "\0" not in path
        if not inside:
            raise _not_there()
        at = os.dup(self._folder)
        try:
            for part in parts[:-1]:
                at = _entered(at, part)
            return self._content(at, parts[-1])
        except (OSError, UnicodeError):
            raise _not_there() from None
        finally:
            os.close(at)

    def _content(self, directory: int, name: str) -> bytes:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        with open(
            os.open(name, _NO_LINK | os.O_NONBLOCK, dir_fd=directory), "rb", closefd=True
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _not_there()
            content = file.read(self._max_bytes + 1)
        if len(content) > self._max_bytes:
            raise Problem(413, f"image_path: the file has more than {self._max_bytes:,} bytes")
        return content


def _entered(directory: int, name: str) -> int:
    """The directory `name` inside `directory`, which is closed if that is opened."""
    inner = os.open(name, _NO_LINK | os.O_DIRECTORY, dir_fd=directory)
    os.close(directory)
    return inner


def _not_there() -> Problem:
    """One sentence for all reasons: what lies outside is not told."""
    return Problem(404, "image_path: there is no such file in the server's folder of pictures")
