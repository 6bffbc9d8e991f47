"""Train and evaluate what a study still lacks, several runs at a time.

A driver takes runs in the study's order, each under its lock, so several drivers share the work.
The same command again goes on: finished runs stay, interrupted ones resume from their checkpoints.
Runs are evaluated on validation alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.run import ROOT
from launch.study.packing import pack_fold
from launch.study.question import Study
from launch.study.trials import Trial
from mmsa.errors import EXIT_PREEMPTED, EXIT_USER_ERROR
from mmsa.foundation.file_lock import FileLock
from mmsa.process.launcher import LAUNCHER_VARIABLE
from mmsa.process.status import STATUS_NAME, read_status
from mmsa.training.checkpoints.run_lock import LOCK_NAME

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 1.0


class Driver:
    """Works on the runs of a study with `parallel` threads, each with one run at a time.

    Each run has `processes` ranks (one: no launcher), which share the cores of this machine.
    """

    def __init__(
        self,
        study: Study,
        base: Path,
        trials: Sequence[Trial],
        *,
        parallel: int = 1,
        processes: int = 1,
        engine: str = "ddp",
    ) -> None:
        self._study = study
        self._base = base
        self._parallel = parallel
        self._processes = processes
        self._engine = engine
        self._todo = deque(trials)
        self._total = len(trials)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopping: int | None = None

    def work(self) -> int | None:
        """Work until nothing is left, or a signal: its number. Main thread alone."""
        with self._signals():
            threads = [
                threading.Thread(target=self._loop, name=f"runs-{number}")
                for number in range(self._parallel)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # so that signals are handled
                    thread.join(_POLL_S)
        return self._stopping

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
        """Begin nothing more, and have the runs save and end; a second signal insists."""
        if self._stopping is None:
            told = "ending: the runs save and stop; the same command goes on"
            print(told, file=sys.stderr, flush=True)
        self._stopping = number
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM if number != signal.SIGINT else number)

    def _loop(self) -> None:
        while self._stopping is None:
            try:
                trial = self._todo.popleft()
            except IndexError:
                return
            lock = trial.lock()
            if lock is None:
                self._say(trial, "another driver works on it")
                continue
            with lock:
                self._do(trial)

    def _do(self, trial: Trial) -> None:
        digest = self._study.digest_of(trial.variant)
        if trial.is_scored("val"):
            return
        if trial.is_given_up(digest):
            self._say(trial, f"not tried again: {trial.failures(digest)[-1]['why']}")
            return
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        for part in ("pack", "train", "evaluate"):
            code = self._part(part, trial)
            if self._stopping is not None:
                return
            if code == EXIT_PREEMPTED:  # by its own time limit: it resumes
                self._say(trial, "interrupted; it is resumed later")
                self._todo.append(trial)
                return
            if code:
                why = self._why(part, trial, code)
                # A launcher makes 1 of the 2 of its ranks.
                refused = read_status(trial.run_dir / STATUS_NAME).get("exit_code")
                code = EXIT_USER_ERROR if part == "train" and refused == EXIT_USER_ERROR else code
                trial.note_attempt(part=part, code=code, why=why, digest=digest)
                self._say(trial, why)
                if not trial.is_given_up(digest):
                    self._todo.append(trial)
                return
        trial.note_attempt(part="all", code=0, why="", digest=digest)
        minutes = (time.monotonic() - begin) / 60
        self._say(trial, f"done, {minutes:.1f} min")

    def _part(self, part: str, trial: Trial) -> int:
        if part == "pack":
            if self._study.folds is None or trial.shards is None or trial.fold is None:
                return 0
            return pack_fold(self._study.folds, trial.fold, trial.shards, trial.log)
        if part == "train":
            self._wait_for_orphan(trial)
            if read_status(trial.run_dir / STATUS_NAME).get("state") == "done":
                return 0
            self._say(trial, "trains")
            words = ["--config", str(self._base), *trial.overrides(self._study)]
            return self._run(self._command("train.py", words), trial)
        return self._run(evaluation_command(trial, "val"), trial)

    def _command(self, script: str, words: Sequence[str]) -> list[str]:
        if self._processes == 1 and self._engine == "ddp":
            return [sys.executable, str(ROOT / script), *words]
        run = ["-m", "launch", "run", "-n", str(self._processes), "--engine", self._engine]
        return [sys.executable, *run, *words]

    def _run(self, command: Sequence[str], trial: Trial) -> int:
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // (self._parallel * self._processes))
        environment = os.environ | {LAUNCHER_VARIABLE: str(os.getpid())}  # it ends with this driver
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        with trial.log.open("ab") as lines:
            with self._guard:
                if self._stopping is not None:
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
            try:
                return child.wait()
            finally:
                self._children.discard(child)

    def _wait_for_orphan(self, trial: Trial) -> None:
        """Wait while a run that a killed driver began still saves and ends."""
        path = trial.run_dir / LOCK_NAME
        told = False
        while path.exists() and self._stopping is None:
            try:
                FileLock(path).release()
                return
            except BlockingIOError:
                if not told:
                    self._say(trial, "is still running; waiting for its end")
                    told = True
                time.sleep(_POLL_S)

    def _why(self, part: str, trial: Trial, code: int) -> str:
        """What went wrong, as one line."""
        reason = ""
        if part == "train":
            reason = str(read_status(trial.run_dir / STATUS_NAME).get("reason") or "")
        if not reason:
            with contextlib.suppress(OSError, IndexError):
                lines = trial.log.read_text(encoding="utf-8", errors="replace").splitlines()
                reason = [line for line in lines if line.strip()][-1]
        return (
            f"{part} ended with {code}: {reason.splitlines()[0] if reason else '?'} ({trial.log})"
        )

    def _say(self, trial: Trial, what: str) -> None:
        left = len(self._todo)
        print(f"[{self._total - left}/{self._total}] {trial.name}: {what}", flush=True)


def evaluation_command(trial: Trial, split: str) -> list[str]:
    """The command that evaluates the best model of a run on a split."""
    words = [str(trial.run_dir), "--split", split, "--no-page"]
    return [sys.executable, str(ROOT / "evaluate.py"), *words]
