"""One launch at a time on a run directory: the main rank holds `RUN/.lock` while it lives."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.parsing import parse_json

logger = logging.getLogger("mmsa")

LOCK_NAME = ".lock"
_ENDS_WITHIN_S = 3.0  # a launch that was killed just now may still be about to end


def lock_run(run_dir: Path, *, wait_s: float = _ENDS_WITHIN_S) -> FileLock:
    """Take the lock of a run directory, which is created if it does not exist.

    Raises `UserError` that names the holder. On a file system without locks it warns and holds
    nothing.
    """
    path = run_dir / LOCK_NAME
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, wait_s=wait_s)
    except BlockingIOError:
        raise UserError(_held_by(path)) from None
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be a run directory ({error.strerror}); choose another run.dir"
        ) from None
    if not lock.supported:
        logger.warning(
            "%s is on a file system without locks: nothing prevents a second launch on it; start "
            "one at a time",
            run_dir,
        )
        return lock
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # a full disk: the lock holds, it only does not name its holder
        lock.write((json.dumps(holder) + "\n").encode())
    return lock


def _held_by(path: Path) -> str:
    try:
        holder = parse_json(path.read_text())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"{path.parent} is being trained by another launch ({who}). Wait for it, end it, or choose "
        "another run.dir"
    )
