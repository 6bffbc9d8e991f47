"""Threads that run one process at a time each, and end together at a signal.

A signal begins nothing more and has the processes save and end; a second one insists.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launch.site import ROOT
from mmsa.errors import EXIT_PREEMPTED
from mmsa.process.launcher import LAUNCHER_VARIABLE

# SIGUSR1 is what SLURM's job scripts pass on before a time limit.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
POLL_S = 1.0
_WATCH_S = 0.5


class Workers:
    """`parallel` threads; each process has `processes` ranks (one: no launcher).

    The processes share the cores of this machine.
    """

    def __init__(self, *, parallel: int = 1, processes: int = 1, engine: str = "ddp") -> None:
        self._parallel = parallel
        self._processes = processes
        self._engine = engine
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self.stopping: int | None = None  # the signal that was received

    def work(self, loop: Callable[[], None]) -> int | None:
        """Run `loop` in each thread until all return; the signal if there was one.

        Main thread alone. An error of a thread stops the others and is raised here.
        """
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                loop()
            except BaseException as error:
                errors.append(error)
                self._end(signal.SIGTERM)

        with self._signals():
            threads = [
                threading.Thread(target=guarded, name=f"runs-{number}")
                for number in range(self._parallel)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # so that signals are handled
                    thread.join(POLL_S)
        if errors:
            raise errors[0]
        return self.stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in _STOPS}
        for number in _STOPS:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.stopping is None:
            told = "ending: the runs save and stop; the same command goes on"
            print(told, file=sys.stderr, flush=True)
        self._end(number)

    def _end(self, number: int) -> None:
        self.stopping = number
        for child in list(self._children):
            send(child, signal.SIGTERM if number != signal.SIGINT else number)

    def script(self, script: str, words: Sequence[str]) -> list[str]:
        """The command that runs a script of the project in the processes of a run."""
        if self._processes == 1 and self._engine == "ddp":
            return [sys.executable, str(ROOT / script), *words]
        run = ["-m", "launch", "run", "-n", str(self._processes), "--engine", self._engine]
        return [sys.executable, *run, *words]

    def run(
        self,
        command: Sequence[str],
        log: Path,
        watch: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> int:
        """Run a command until it has ended; its exit code. `watch` is called now and then."""
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // (self._parallel * self._processes))
        environment = os.environ | {LAUNCHER_VARIABLE: str(os.getpid())}  # it ends with this driver
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        with log.open("ab") as lines:
            with self._guard:
                if self.stopping is not None:
                    return EXIT_PREEMPTED
                child = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is passed on once
                )
                self._children.add(child)
            if self.stopping is not None:  # while it was started, when nobody could tell it
                send(child, signal.SIGTERM)
            try:
                while watch is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return child.wait(_WATCH_S)
                    watch(child)
                return child.wait()
            finally:
                self._children.discard(child)


def send(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
