"""Writing by all ranks or by none, and removing old `step-N` directories in the background."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

# A full disk is an OSError in Python, a RuntimeError in torch, and safetensors has its own.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
REMOVAL_THREAD = "removal"  # the name of every thread of `remove_by_thread`


class WriteError(Exception):
    """This or another rank failed to write; raised on all ranks."""


def together(accelerator: Accelerator, act: Callable[[], None] | None) -> None:
    """Run `act`, if this rank has one; raise `WriteError` on every rank where any rank failed."""
    problem = ""
    try:
        if act is not None:
            act()
    except WRITE_ERRORS as error:
        problem = str(error) or type(error).__name__
    failed = torch.tensor(float(bool(problem)), device=accelerator.device)
    if float(accelerator.reduce(failed, reduction="sum")) > 0:
        raise WriteError(problem or "another rank failed to write")


def remove_by_thread(directory: Path) -> None:
    """Hide a directory at once and let a thread remove it: gigabytes in the page cache take tenths
    of a second. `remove_leftovers` removes what a killed thread left."""
    hidden = directory.with_name(f".{directory.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(directory, hidden)
    # Not a daemon thread: the process waits for it at its end.
    threading.Thread(target=shutil.rmtree, args=(hidden, True), name=REMOVAL_THREAD).start()


def wait_for_removals() -> None:
    """Wait until the threads of `remove_by_thread` are done: a process that leaves by `os._exit`
    would leave half of a directory."""
    for thread in threading.enumerate():
        if thread.name == REMOVAL_THREAD:
            thread.join()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes and removals left in a folder of `step-N`; a thread may be removing
    the same ones."""
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
