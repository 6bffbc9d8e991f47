"""Which version of this package is running, for reports and checkpoints."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """The version of this package, for reports and checkpoints.

    In a git checkout also the commit, with `-dirty` where files differ from it.
    """
    try:
        released = version("mmsa")
    except PackageNotFoundError:
        released = "unknown (not installed)"
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # else git might find another project's
        return released
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return released
    return f"{released} ({done.stdout.strip()})"
