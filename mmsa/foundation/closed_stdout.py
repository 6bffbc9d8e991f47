"""What a command does when the reader of its output has gone, as `| head` does."""

from __future__ import annotations

import os
import signal
import sys

EXIT_CLOSED_STDOUT = 128 + signal.SIGPIPE  # as a shell says of a command that SIGPIPE ended


def discard_stdout() -> int:
    """Called after a `BrokenPipeError`: the rest of stdout's buffer goes nowhere; the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLOSED_STDOUT
