"""One launch at a time on a run directory.

`RUN/.lock` is locked by the main rank for as long as its process lives: the kernel releases it with
the process, also after kill -9, so nothing is left to be cleaned up.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from mmsa.errors import UserError

logger = logging.getLogger("mmsa")

LOCK_NAME = ".lock"
_ENDS_WITHIN_S = 3.0  # a launch that was killed just now may still be about to end
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class RunLock:
    """Holds the lock of a run directory until it is released or the process ends."""

    def __init__(self, run_dir: Path, *, wait_s: float = _ENDS_WITHIN_S) -> None:
        """Take the lock; raises `UserError` that names who has it.

        On a file system without locks it warns and holds nothing.
        """
        self._file = -1
        path = run_dir / LOCK_NAME
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"{run_dir} cannot be a run directory ({error.strerror}); give another run.dir"
            ) from None
        if self._locked_within(wait_s, path):
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            try:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, (json.dumps(holder) + "\n").encode(), 0)
            except OSError:
                pass  # a full disk: the lock holds, it only does not say whose it is

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _locked_within(self, wait_s: float, path: Path) -> bool:
        """Whether the lock is held; False where the file system has none."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self.release()
                    raise UserError(_in_words(path)) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                logger.warning(
                    "%s is on a file system without locks: nothing holds a second launch back; "
                    "start one at a time",
                    path.parent,
                )
                return False


def _in_words(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"{path.parent} is being trained by another launch ({who}). Wait for it or end it, or give "
        "another run.dir"
    )
