"""A disk that is full: see the fixture `small_disk`."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Write until nothing fits any more, then free `leave_bytes` again; returns the filler."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    if leave_bytes:
        os.truncate(filler, filler.stat().st_size - leave_bytes)
    return filler
