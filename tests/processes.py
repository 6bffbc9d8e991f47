"""Looking at the processes of a launch, and at what they would leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, so far as they live."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def shared_memory_names(processes: Iterable[psutil.Process]) -> set[str]:
    """Names in /dev/shm of what these processes have mapped: a kill -9 would leave them.

    By inode, because a semaphore is mapped under the temporary name that it was made with.
    """
    named = {entry.stat().st_ino: entry.name for entry in os.scandir("/dev/shm")}
    found = set()
    for process in processes:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/"):
                found.add(named.get(int(fields[4]), ""))
    return found - {""}
