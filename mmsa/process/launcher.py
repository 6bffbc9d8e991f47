"""The launcher that started this process: whether there is one, and that no rank outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# How `accelerate launch`, torchrun and deepspeed appear in a command line.
_PROGRAMS = {"accelerate", "accelerate-launch", "torchrun", "deepspeed"}
_MODULES = ("accelerate.commands.", "torch.distributed.run", "deepspeed.launcher.")
_PATHS = ("accelerate/commands/", "torch/distributed/run.py", "deepspeed/launcher/")
LAUNCHER_VARIABLE = "MMSA_LAUNCHER_PID"  # set by `python -m launch run` for its ranks
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def is_launcher(command_line: list[str]) -> bool:
    """Whether a command line is a launcher's: a program, a Python script or a module."""
    words = iter(command_line)
    program = Path(next(words, "")).name
    if not program.startswith("python"):
        return program in _PROGRAMS
    for word in words:
        if word == "-m":
            return next(words, "").startswith(_MODULES)
        if word in ("-X", "-W"):
            next(words, "")
        elif not word.startswith("-"):
            return Path(word).name in _PROGRAMS or any(part in word for part in _PATHS)
    return False


def end_with_launcher() -> bool:
    """Have the kernel send SIGTERM to this process when its launcher ends, however it ends.

    Without this, `kill -9` of a launcher, or SIGUSR1, which it does not handle, leaves its ranks
    running. A process that a shell started may outlive the shell (nohup) and is left alone. Returns
    whether it was set; Linux only.
    """
    parent = os.getppid()
    launched = os.environ.get(LAUNCHER_VARIABLE) == str(parent)
    if sys.platform != "linux" or not (launched or is_launcher(_command_line(parent))):
        return False
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        return False
    if os.getppid() != parent:  # it ended in between: the kernel sends nothing
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def requested_processes(command_line: list[str]) -> int | None:
    """`--num_processes` of a launcher's command line; None if it does not say it."""
    if not is_launcher(command_line):
        return None
    for word, following in zip(command_line, [*command_line[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option.replace("-", "_") == "__num_processes":
            number = value if equals else following
            return int(number) if number.isdecimal() else None
        if word.endswith(".py") and not any(part in word for part in _PATHS):
            return None  # what follows is for the script
    return None


def parent_command_line() -> list[str]:
    """The command line of the process that started this one; empty if it cannot be read."""
    return _command_line(os.getppid())


def _command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace") for word in raw.split(b"\0") if word]
