"""A disk that is full: see also the fixture `small_disk`."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow past `num_bytes`: a disk that is full at a known place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
