"""A process keeps the memory that it frees, for the next batch or step."""

from __future__ import annotations

import ctypes
import os

_MIB = 1 << 20
# glibc's mallopt(3): option, value, and the variable by which a user sets it. Free memory that is
# kept at the heap's end; what the heap grows by; the size from which each block is mapped by itself
# (32 MiB is the most that it takes).
_FOR_BATCHES = (
    (-1, 256 * _MIB, "MALLOC_TRIM_THRESHOLD_"),
    (-2, 16 * _MIB, "MALLOC_TOP_PAD_"),
    (-3, 32 * _MIB, "MALLOC_MMAP_THRESHOLD_"),
)
# Nothing is returned, and no block is mapped by itself.
_FOR_STEPS = (
    (-1, -1, "MALLOC_TRIM_THRESHOLD_"),
    (-2, 16 * _MIB, "MALLOC_TOP_PAD_"),
    (-4, 0, "MALLOC_MMAP_MAX_"),
)
_kept = {"for_steps": False}


def keep_freed_memory(*, for_steps: bool = False) -> None:
    """Make the C library keep freed memory instead of returning it to the system.

    By default glibc returns images and batches as soon as they are freed, and the kernel clears and
    maps each page again: 6 to 27 pages a sample, up to a tenth of a loader's time
    (docs/benchmarks.md). The process keeps up to 256 MiB that it has used before.

    With `for_steps`, which is for a rank that computes on a CPU, it keeps all: a step's activations
    are hundreds of MiB, in blocks above the 32 MiB up to which glibc would keep any, and the next
    step needs as many. A later call without it changes nothing. Values that a user sets in
    environment variables win; without glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return
    _kept["for_steps"] |= for_steps
    for option, value, variable in _FOR_STEPS if _kept["for_steps"] else _FOR_BATCHES:
        if variable not in os.environ:
            mallopt(option, value)
