"""Writing so that it stays: flushed to the disk, and by all ranks or by none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

# A full disk is an OSError in Python, a RuntimeError in torch, and safetensors has its own.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class WriteError(Exception):
    """This or another rank failed to write; the same on all ranks."""


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


def flush(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
