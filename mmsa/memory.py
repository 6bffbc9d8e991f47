"""Memory that a process frees stays with it, for the next batch."""

from __future__ import annotations

import ctypes
import os

_MIB = 1 << 20
# glibc's mallopt(3): option, value, and the variable by which a user sets it.
_OPTIONS = (
    (-1, 256 * _MIB, "MALLOC_TRIM_THRESHOLD_"),  # free memory that is kept at the heap's end
    (-2, 16 * _MIB, "MALLOC_TOP_PAD_"),  # what the heap grows by at least
    (
        -3,
        32 * _MIB,
        "MALLOC_MMAP_THRESHOLD_",
    ),  # from here on each block is mapped; the most it takes
)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed instead of giving it back to the system.

    By itself glibc gives pictures and batches back as soon as they are freed, and each page that
    comes again is cleared and mapped by the kernel: 6 to 27 pages a sample, up to a tenth of a
    loader's time (docs/benchmarks.md). The process holds up to 256 MiB that it has used before.
    What a user sets by environment variables stays; without glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return
    for option, value, variable in _OPTIONS:
        if variable not in os.environ:
            mallopt(option, value)
