"""`accelerate launch` inside this process: its ranks' words are shown, its own are kept apart.

The ranks inherit this process's standard output and standard error, so their progress bars see the
terminal. What the launcher itself says goes to Python's `sys.stderr`, which is replaced meanwhile:
torch's log lines and tracebacks, 25 to 45 lines around each mistake that a rank has explained.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil

from mmsa.process.launcher import LAUNCHER_VARIABLE
from mmsa.process.stop_request import SECOND_CTRL_C_AFTER_S

# As in the job scripts (launch/slurm/functions.sh). Two names, for older and newer torch.
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_SIGNAL_VARIABLES = ("TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE")
_GRACE_VARIABLES = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "PET_SHUTDOWN_TIMEOUT")
_GRACE_S = 240  # between a stop signal and SIGKILL; torch's 30 are too short for a large save


@dataclass(frozen=True)
class RankFailure:
    """A rank that did not end with 0; `exit_code` is negative where a signal ended it."""

    rank: int
    exit_code: int


@dataclass(frozen=True)
class Ended:
    """How a launch ended: with 0 on all ranks where nothing is set."""

    launcher_said: str = ""  # all that the launcher wrote to standard error
    first_failure: RankFailure | None = None
    signal_name: str | None = None  # the signal that the launcher passed on
    error: str | None = None  # the launcher itself failed


def run_ranks(words: Sequence[str]) -> Ended:
    """Run `accelerate launch` with `words` and return when all its ranks have ended.

    Must be called in the main thread, where torch's launcher handles signals. Afterwards this
    process ignores them: it is about to end.
    """
    _prepare_environment()
    said = io.StringIO()
    with _second_ctrl_c_reaches_ranks(), redirect_stderr(said), _log_lines_to(said):
        try:
            ended = _launch(words)
        finally:
            for name in _PASSED_ON:  # no handler at all would let a late signal kill this process
                signal.signal(signal.Signals[name], lambda *_: None)
        _wait_for_ranks()
    return replace(ended, launcher_said=said.getvalue())


def _launch(words: Sequence[str]) -> Ended:
    try:
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except KeyboardInterrupt:
        return Ended(signal_name="SIGINT")
    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except ChildFailedError as error:
        traceback.print_exc()
        return Ended(first_failure=_root_cause(error.failures))
    except SignalException as error:
        traceback.print_exc()
        return Ended(signal_name=signal.Signals(error.sigval).name)
    except KeyboardInterrupt:  # before torch's launcher handled signals
        return Ended(signal_name="SIGINT")
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Ended(error=f"{type(error).__name__}: {error}")
    return Ended()


def _root_cause(failures: Mapping[int, Any]) -> RankFailure:
    """Of the ranks that the launcher found ended: a killed one, before those that lost it."""
    found = sorted(failures.items(), key=lambda one: (one[1].exitcode >= 0, one[1].timestamp))
    rank, failure = found[0]
    return RankFailure(rank, failure.exitcode)


def _prepare_environment() -> None:
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())  # ranks end with this process
    if not any(name in os.environ for name in _GRACE_VARIABLES):
        os.environ[_GRACE_VARIABLES[0]] = str(_GRACE_S)
    if not any(name in os.environ for name in _SIGNAL_VARIABLES):
        # A signal that is ignored, as by nohup, stays so.
        heard = [
            name for name in _PASSED_ON if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN
        ]
        os.environ.update(dict.fromkeys(_SIGNAL_VARIABLES, ",".join(heard)))


@contextmanager
def _log_lines_to(stream: io.StringIO) -> Iterator[None]:
    """Have log lines of libraries written to `stream` where their handler was made before."""
    loggers = [logging.getLogger(name) for name in (None, "torch", "accelerate")]
    moved = []
    for handler in (handler for one in loggers for handler in one.handlers):
        if type(handler) is logging.StreamHandler:
            moved.append((handler, handler.setStream(stream)))
    try:
        yield
    finally:
        for handler, before in moved:
            if before is not None:
                handler.setStream(before)


@contextmanager
def _second_ctrl_c_reaches_ranks() -> Iterator[None]:
    """Send a second Ctrl-C to the ranks: torch's launcher passes on only the first signal.

    It is heard on a thread, from the wakeup descriptor of `signal`, whoever handles the signal.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    earlier = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def listen() -> None:
        first = None
        while numbers := os.read(read_end, 64):
            if signal.SIGINT not in numbers:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first >= SECOND_CTRL_C_AFTER_S:
                for rank in psutil.Process().children():
                    with suppress(psutil.NoSuchProcess):
                        rank.send_signal(signal.SIGINT)
        os.close(read_end)

    threading.Thread(target=listen, name="second-ctrl-c", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(write_end)  # the thread reads end of file and ends


def _wait_for_ranks() -> None:
    """Wait for ranks that a repeated signal left saving, and kill those that do not end."""
    seconds = next((os.environ[name] for name in _GRACE_VARIABLES if name in os.environ), "")
    _, left = psutil.wait_procs(
        psutil.Process().children(), timeout=int(seconds) if seconds.isdecimal() else _GRACE_S
    )
    for rank in left:
        rank.kill()
