"""What a command does when the reader of its output has gone, as `| head` does."""

from __future__ import annotations

import os
import select
import signal
import sys

EXIT_CLOSED_STDOUT = 128 + signal.SIGPIPE  # as a shell says of a command that SIGPIPE ended


def flush_stdout() -> int | None:
    """Write what is buffered; the exit code where nobody reads it any more."""
    try:
        if sys.stdout is not None:  # None where it was closed before this process began
            sys.stdout.flush()
    except BrokenPipeError:
        return discard_stdout()
    except OSError:  # a full disk under it: what did not fit is lost
        pass
    return None


def stdout_has_gone() -> bool:
    """Whether nobody reads stdout any more; asked after a `BrokenPipeError` of whatever file."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file at all
        return False


def discard_stdout() -> int:
    """Called after a `BrokenPipeError`: the rest of stdout's buffer goes nowhere; the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLOSED_STDOUT
