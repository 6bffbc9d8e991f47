"""A lock file that one process holds until it releases it or ends, however it ends.

flock(2): the kernel releases it, also after kill -9, so there is nothing to clean up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

# EBADF: NFS locks only what is open for writing, and a directory never is.
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_RETRY_S = 0.1


class FileLock:
    """An exclusive lock on one file, which is created and stays, or on a directory that exists. A
    context manager."""

    def __init__(self, path: Path, *, wait_s: float = 0.0) -> None:
        """Take the lock, waiting up to `wait_s` seconds for another holder.

        `supported` is False on a file system without locks: then nothing is held. Raises
        `BlockingIOError` where another process keeps it, `OSError` where the file cannot be opened.
        """
        self.path = path
        self.supported = True
        kind = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        self._file = os.open(path, kind | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self.release()
                    raise
                time.sleep(_RETRY_S)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    self.release()
                    raise
                self.supported = False
                return

    def write(self, content: bytes) -> None:
        """Replace the content of the lock file, for people: who holds it. Raises `OSError`."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)

    def release(self) -> None:
        """Give the lock up; does nothing where it is not held."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_if_free(path: Path) -> FileLock | None:
    """The lock on `path`; None while another process holds it. Raises `OSError` as `FileLock`."""
    try:
        return FileLock(path)
    except BlockingIOError:
        return None


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on `path`, which is created."""
    lock = lock_if_free(path)
    if lock is not None:
        lock.release()
    return lock is None


class DirectoryLock:
    """An exclusive lock on a directory and on a file in it. A context manager.

    Nobody can remove a directory's own lock without the directory; the file says who holds it, and
    locks on file systems that do not lock directories (NFS).
    """

    def __init__(self, directory: Path, name: str, *, wait_s: float = 0.0) -> None:
        """Take both locks of `directory`, which exists. Raises as `FileLock` does."""
        self.of_directory = FileLock(directory, wait_s=wait_s)
        try:
            self.of_file = FileLock(directory / name, wait_s=wait_s)
        except OSError:
            self.of_directory.release()
            raise

    def release(self) -> None:
        """Give both up."""
        self.of_file.release()
        self.of_directory.release()

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
