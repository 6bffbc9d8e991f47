"""Train and evaluate what a study still lacks, several runs at a time.

A driver takes runs in the study's order, each under its lock, so several drivers share the work.
The same command again goes on: finished runs stay, interrupted ones resume from their checkpoints.
Runs are evaluated on validation alone.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from launch.site import ROOT
from launch.study.attempts import wait_for_orphan
from launch.study.packing import pack_fold
from launch.study.question import Study
from launch.study.trials import Trial
from launch.study.workers import Workers
from mmsa.errors import EXIT_PREEMPTED
from mmsa.extensions import as_options
from mmsa.process.status import STATUS_NAME, read_status


class Driver:
    """Works on the runs of a study, each thread of `workers` on one at a time."""

    def __init__(self, study: Study, base: Path, trials: Sequence[Trial], workers: Workers) -> None:
        self._study = study
        self._base = base
        self._workers = workers
        self._todo = deque(trials)
        self._total = len(trials)

    def work(self) -> int | None:
        """Work until nothing is left, or a signal: its number. Main thread alone."""
        return self._workers.work(self._loop)

    def _loop(self) -> None:
        while self._workers.stopping is None:
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
        if trial.attempts.are_given_up(digest):
            self._say(trial, f"not tried again: {trial.attempts.failures(digest)[-1]['why']}")
            return
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        for part in ("pack", "train", "evaluate"):
            code = self._part(part, trial)
            if self._workers.stopping is not None:
                return
            if code == EXIT_PREEMPTED:  # by its own time limit: it resumes
                self._say(trial, "interrupted; it is resumed later")
                self._todo.append(trial)
                return
            if code:
                why = trial.attempts.note_failure(part, code, trial.run_dir, trial.log, digest)
                self._say(trial, why)
                if not trial.attempts.are_given_up(digest):
                    self._todo.append(trial)
                return
        trial.attempts.note(part="all", code=0, why="", digest=digest)
        minutes = (time.monotonic() - begin) / 60
        self._say(trial, f"done, {minutes:.1f} min")

    def _part(self, part: str, trial: Trial) -> int:
        workers = self._workers
        if part == "pack":
            if trial.shards is None or trial.fold is None:
                return 0
            return pack_fold(self._study, trial.fold, trial.shards, trial.log)
        if part == "train":
            wait_for_orphan(
                trial.run_dir,
                lambda: workers.stopping is not None,
                lambda what: self._say(trial, what),
            )
            if read_status(trial.run_dir / STATUS_NAME).get("state") == "done":
                return 0
            self._say(trial, "trains")
            words = self._study.training_words(self._base, trial.overrides(self._study))
            return workers.run(workers.script("train.py", words), trial.log)
        return workers.run(evaluation_command(self._study, trial, "val"), trial.log)

    def _say(self, trial: Trial, what: str) -> None:
        left = len(self._todo)
        print(f"[{self._total - left}/{self._total}] {trial.name}: {what}", flush=True)


def evaluation_command(study: Study, trial: Trial, split: str) -> list[str]:
    """The command that evaluates the best model of a run on a split."""
    words = [str(trial.run_dir), "--split", split, "--no-page", *as_options(study.imports)]
    return [sys.executable, str(ROOT / "evaluate.py"), *words]
