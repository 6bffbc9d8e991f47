"""A process that has imported the large libraries, and forks launches that need not do so again.

Importing torch, transformers and accelerate takes each process five seconds of CPU time, a launch
of two ranks three times that, and many times what a tiny model trains in. Here the launcher and its
ranks are forked instead of executed. All else is as in `accelerate launch`: the launcher's own code
with its rendezvous, environment variables and signals, a process and a session for each rank, gloo
between them. Not seen by such launches: what depends on how a process was executed (imports, their
order and environment variables, command lines, locks held while forking). So tests of those execute
the real command, as do the tests of signals, of SLURM and of printed commands, and with
MMSA_TEST_EXEC=1 all do.

Standard input: a JSON line for each launch. Standard output: a line with its pid, one at its end.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

_PR_SET_NAME = 15  # <linux/prctl.h>
_LAUNCHER = "accelerate.commands.accelerate_cli"
_LIBRARIES = (
    *(_LAUNCHER, "accelerate.commands.launch", "torch.distributed.run"),
    *("transformers.models.bert.modeling_bert", "transformers.models.resnet.modeling_resnet"),
    *("torch.utils.tensorboard", "torchvision", "sklearn.metrics", "scipy.sparse"),
    # DeepSpeed imports this, because its Muon is compiled when it is imported: 4 s of each rank.
    *("torch._inductor.compile_fx", "pydantic", "webdataset"),
)


def _forked(act: Callable[[], object], *, name: str) -> int:
    """Fork a process in a session of its own that does `act` as a program would; its pid."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    atexit._clear()
    # An executed program begins with the default for each signal that its parent handled.
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    random.seed()
    _end(act)


def _end(act: Callable[[], object]) -> NoReturn:
    """Do `act` and end the process as the interpreter would."""
    code: Any = 0
    try:
        act()
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def _become(env: dict[str, str], arguments: list[str], path: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    sys.argv = arguments
    sys.path[0] = path


class _Rank:
    """A forked rank, with what torch's launcher uses of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("rank", timeout or 0.0)
            time.sleep(0.02)
        return int(self.returncode or 0)


def _fork_rank(handler: Any, arguments: tuple[str, ...], env: dict[str, str]) -> _Rank:
    """In place of `SubprocessHandler._popen`: `python -u SCRIPT ...`, or `-m MODULE`, forked."""
    python, unbuffered, script, *rest = arguments
    assert (python, unbuffered) == (sys.executable, "-u"), arguments

    def rank() -> None:
        for stream, target in ((handler._stdout, 1), (handler._stderr, 2)):
            if stream is not None:
                os.dup2(stream.fileno(), target)
        folder = os.getcwd() if script == "-m" else os.path.dirname(os.path.abspath(script))
        _become(env, rest if script == "-m" else [script, *rest], folder)
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        if script == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")

    return _Rank(_forked(rank, name="rank"))


def _launch(order: dict[str, Any]) -> int:
    def launcher() -> None:
        for path, target, mode in (
            (os.devnull, 0, os.O_RDONLY),
            (order["stdout"], 1, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            (order["stderr"], 2, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            os.dup2(os.open(path, mode), target)
        os.chdir(order["cwd"])
        # Ranks ask by it whether their parent is a launcher: its command line does not say so.
        env = {**order["env"], "MMSA_LAUNCHER_PID": str(os.getpid())}
        _become(env, ["accelerate", *order["arguments"]], order["cwd"])
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.SubprocessHandler._popen = _fork_rank  # type: ignore[method-assign]
        if order["deepspeed"]:
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
        importlib.import_module(_LAUNCHER).main()

    return _forked(launcher, name="launcher")


def serve() -> None:
    """Fork a launch for each line of standard input, until it ends."""
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    for library in _LIBRARIES:
        importlib.import_module(library)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for source in (0, reading):
        selector.register(source, selectors.EVENT_READ)
    asked = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if 0 in ready:
            more = os.read(0, 1 << 20)
            if not more:
                return
            *lines, asked = (asked + more).split(b"\n")
            for line in lines:
                order = json.loads(line)
                say.write(json.dumps({"id": order["id"], "pid": _launch(order)}) + "\n")
        if reading in ready:
            os.read(reading, 1 << 16)
            for pid, code in _ended():
                say.write(json.dumps({"ended": pid, "code": code}) + "\n")


def _ended() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve()
