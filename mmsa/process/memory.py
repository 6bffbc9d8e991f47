"""Memory that a process frees stays with it, for the next batch."""

from __future__ import annotations

import ctypes
import os

_MIB = 1 << 20
# glibc's mallopt(3): option, value, and the variable by which a user sets it. Free memory that is
# kept at the heap's end; what the heap grows by; the size from which each block is mapped by itself
# (32 MiB is the most that it takes).
_OPTIONS = (
    (-1, 256 * _MIB, "MALLOC_TRIM_THRESHOLD_"),
    (-2, 16 * _MIB, "MALLOC_TOP_PAD_"),
    (-3, 32 * _MIB, "MALLOC_MMAP_THRESHOLD_"),
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
