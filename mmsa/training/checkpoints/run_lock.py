"""One launch at a time on a run directory, which the main rank locks while it lives.

Two locks: on the directory itself, which nobody can remove without removing the run, and on
`RUN/.lock`, which says who holds them. Where directories cannot be locked (NFS), a launch on this
machine is known by `status.json` too, so that a removed `.lock` lets nobody in there either.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mmsa.errors import UserError
from mmsa.foundation.file_lock import DirectoryLock
from mmsa.foundation.parsing import parse_json
from mmsa.process.status import STATUS_NAME, read_status

logger = logging.getLogger("mmsa")

LOCK_NAME = ".lock"
_ENDS_WITHIN_S = 3.0  # a launch that was killed just now may still be about to end


def lock_run(run_dir: Path, *, wait_s: float = _ENDS_WITHIN_S) -> DirectoryLock:
    """Lock a run directory, which is created if it does not exist.

    Raises `UserError` that names the holder. On a file system without locks it warns and holds
    nothing.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(run_dir, LOCK_NAME, wait_s=wait_s)
        if not lock.of_directory.supported and _is_alive(read_status(run_dir / STATUS_NAME)):
            lock.release()
            raise BlockingIOError
    except BlockingIOError:
        raise UserError(_held_by(run_dir)) from None
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be a run directory ({error.strerror}); choose another run.dir"
        ) from None
    if not lock.of_file.supported:
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
        lock.of_file.write((json.dumps(holder) + "\n").encode())
    return lock


def _is_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process of a `status.json` runs on this machine, and is not this one.

    A process that has its number by now but began later is another one.
    """
    pid = status.get("pid")
    if status.get("state") != "running" or status.get("host") != socket.gethostname():
        return False
    try:
        reported = time.mktime(time.strptime(str(status["started"])[:19], "%Y-%m-%dT%H:%M:%S"))
        return pid != os.getpid() and psutil.Process(pid).create_time() < reported + 1
    except (psutil.Error, ValueError, TypeError, KeyError, OverflowError):
        return False


def _held_by(run_dir: Path) -> str:
    who = "another process"
    try:
        holder = parse_json((run_dir / LOCK_NAME).read_text())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # .lock was removed
        status = read_status(run_dir / STATUS_NAME)
        if {"pid", "host"} <= status.keys():
            who = f"process {status['pid']} on {status['host']}"
    return (
        f"{run_dir} is being trained by another launch ({who}). Wait for it, end it, or choose "
        "another run.dir"
    )
