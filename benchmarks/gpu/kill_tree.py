"""Ends a process with all that it has started."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

import psutil


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """kill -9 of a process that we started and of all below it, at once."""
    members: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        members = [top, *top.children(recursive=True)]
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for member in members:
            with suppress(psutil.NoSuchProcess):
                act(member)
    process.wait()
    psutil.wait_procs(members, timeout=10)
