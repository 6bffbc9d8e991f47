"""Work on the search of a study: claim trials, train them, stop the hopeless ones.

Any number of drivers may work on a search, each may be killed, and the same command goes on: the
directories are the only state (launch/study/search/directories.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.study.attempts import Attempts, wait_for_orphan
from launch.study.pruning import Judge, values_so_far
from launch.study.question import Study
from launch.study.search import history
from launch.study.search.directories import (
    COMPLETE,
    FAILED,
    PRUNED,
    PRUNING,
    TrialDirectories,
    TrialDirectory,
)
from launch.study.search.settings import NoPruner, Search
from launch.study.search.summary import is_finished
from launch.study.search.validations import Validation, read_validations, value_of_best
from launch.study.workers import POLL_S, Workers
from mmsa.errors import EXIT_PREEMPTED, UserError
from mmsa.foundation.file_lock import FileLock
from mmsa.process.status import STATUS_NAME, read_status

if TYPE_CHECKING:
    from mmsa.config import Config


def identity_of(study: Study) -> dict[str, Any]:
    """What may not change between the trials of a search, and the digest of it all.

    Sampler, pruner, `confirm` and the number of trials may change between two starts.
    """
    assert study.search is not None
    search = study.search
    base = study.base
    if isinstance(base, str):
        base = Path(base).read_text(encoding="utf-8")
    content: dict[str, Any] = {
        "base": hashlib.sha256(str(base).encode()).hexdigest()[:16],
        "settings": study.settings,
        "metric": study.metric,
        "seed": search.seed,
        "space": [
            [key, one.model_dump(mode="json", by_alias=True)] for key, one in search.space.items()
        ],
    }
    text = json.dumps(content, sort_keys=True)
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], **content}


def check_search(study: Study, base: str) -> None:
    """Raise `UserError` where Optuna is missing or the space names what no run could take.

    The ends of each range and each choice are tried, each alone; what they give together is
    checked when a trial is begun.
    """
    from mmsa.config import load_config
    from mmsa.evaluation.scores.metrics import metric_problem
    from mmsa.training.setup import training_checks

    assert study.search is not None
    history.require_optuna()
    problem = metric_problem(study.metric)
    if problem:
        raise UserError(f"metric: {problem}; a search uses what runs write of their validations")
    problems = []
    for values in study.search.corners():
        settings = [*study.settings, *study.search.overrides(values), "run.dir=x"]
        try:
            load_config(base, settings, checks=training_checks())
        except UserError as error:
            problems.append(f"with {' '.join(study.search.overrides(values))}: {error}")
    if problems:
        raise UserError(f"the space has values that no run could take. {'; '.join(problems)}")


class SearchDriver:
    """Works on the trials of a search, each thread of `workers` on one at a time."""

    def __init__(self, study: Study, base: Path, out: Path, workers: Workers) -> None:
        assert study.search is not None
        self._study = study
        self._search: Search = study.search
        self._base = base
        self._workers = workers
        self._trials = TrialDirectories(out)
        self._guard = threading.Lock()
        self._mine: set[int] = set()  # a file lock is the process's on some file systems
        self._told_of_others = False
        self._digest = identity_of(study)["digest"]

    def work(self) -> int | None:
        """Work until no trial is left, or a signal: its number. Main thread alone."""
        return self._workers.work(self._loop)

    def _loop(self) -> None:
        while self._workers.stopping is None:
            taken = self._take()
            if taken is not None:
                trial, lock = taken
                try:
                    with lock:
                        self._do(trial)
                finally:
                    self._mine.discard(trial.number)
            elif self._search.confirm is None or is_finished(self._search, self._trials.all()):
                return
            else:  # others still work on trials; then there are runs to confirm
                self._tell_of_others()
                time.sleep(POLL_S)

    def _tell_of_others(self) -> None:
        with self._guard:
            told, self._told_of_others = self._told_of_others, True
        if not told and not self._mine:
            print("waiting for trials of other drivers before the best are confirmed", flush=True)

    def _take(self) -> tuple[TrialDirectory, FileLock] | None:
        """A trial that lost its driver, or a new one; None where nothing is left to begin."""
        with self._guard:
            for trial in self._trials.all():
                if trial.number in self._mine or trial.is_finished:
                    continue
                if (lock := trial.lock()) is not None:
                    self._mine.add(trial.number)
                    return trial, lock
            while (new := self._trials.claim(self._search.trials)) is not None:
                if (lock := new.lock()) is not None:  # else another driver thought it lost
                    self._mine.add(new.number)
                    return new, lock
        return None

    def _do(self, trial: TrialDirectory) -> None:
        if trial.is_finished:  # by another driver, since it was looked at
            return
        if trial.values is None:
            self._choose(trial)
        try:
            config = self._configuration(trial)
        except UserError as error:
            self._finish(trial, FAILED, [], why=str(error), select_by=self._study.metric)
            return
        select_by = config.train.select_by
        workers = self._workers
        wait_for_orphan(
            trial.run_dir,
            lambda: workers.stopping is not None,
            lambda what: self._say(trial, what),
        )
        code = 0
        status = read_status(trial.run_dir / STATUS_NAME).get("state")
        if status != "done" and trial.result.get("state") != PRUNING:
            self._say(trial, f"trains {' '.join(trial.read('trial.json')['settings'])}")
            overrides = trial_overrides(self._study, trial)
            words = self._study.training_words(self._base, overrides)
            judge = None
            if not isinstance(self._search.pruner, NoPruner):
                judge = Judge(self._study, self._trials, trial, select_by)
            code = workers.run(workers.script("train.py", words), trial.log, judge)
        self._conclude(trial, code, select_by)

    def _choose(self, trial: TrialDirectory) -> None:
        """Ask the sampler for the values of a new trial, and write them."""
        with self._guard:
            study = history.history(
                self._search,
                self._study.metric,
                self._trials.all(),
                lambda other: values_so_far(other, self._study.metric),
                number=trial.number,
            )
            values = history.propose(study, self._search)
        content = {"number": trial.number, "values": values}
        content["settings"] = self._search.overrides(values)
        trial.write("trial.json", content | {"sampler": self._search.sampler.model_dump()})

    def _configuration(self, trial: TrialDirectory) -> Config:
        from mmsa.config import load_config
        from mmsa.training.setup import training_checks

        overrides = trial_overrides(self._study, trial)
        return load_config(str(self._base), overrides, checks=training_checks())

    def _conclude(self, trial: TrialDirectory, code: int, select_by: str) -> None:
        """Write how a run ended, or leave it to be resumed."""
        status = read_status(trial.run_dir / STATUS_NAME)
        validations = read_validations(trial.run_dir, self._study.metric, select_by)
        if status.get("state") == "done":
            self._finish(trial, COMPLETE, validations, select_by=select_by)
        elif trial.result.get("state") == PRUNING:
            self._finish(trial, PRUNED, validations, select_by=select_by)
        elif self._workers.stopping is not None:
            return
        elif code == EXIT_PREEMPTED:  # by its own time limit
            self._say(trial, "interrupted; it is resumed")
        else:
            attempts = Attempts(trial.log.with_suffix(".jsonl"))
            why = attempts.note_failure("train", code, trial.run_dir, trial.log, self._digest)
            if attempts.are_given_up(self._digest):
                self._finish(trial, FAILED, validations, why=why, select_by=select_by)
            else:
                self._say(trial, why)

    def _finish(
        self,
        trial: TrialDirectory,
        state: str,
        validations: Sequence[Validation],
        *,
        select_by: str,
        why: str = "",
    ) -> None:
        """Write the result of a trial; one that was not pruned keeps its best export."""
        value = value_of_best(validations, select_by)
        if state != FAILED and (math.isnan(value) or math.isnan(validations[-1].value)):
            state, why = FAILED, f"{self._study.metric} is not a number on validation"
        status = read_status(trial.run_dir / STATUS_NAME)
        result: dict[str, Any] = {
            "state": state,
            "value": None if math.isnan(value) else value,
            "step": status.get("step", 0),
            "num_steps": status.get("num_steps"),
            "why": why,
            "validations": [
                {"step": one.step, "value": None if math.isnan(one.value) else one.value}
                for one in validations
            ],
        }
        if state != FAILED:  # before the result: after it nobody looks at the trial again
            trial.make_small(keep_best=state == COMPLETE)
        trial.write("result.json", result)
        shown = "" if result["value"] is None else f", {self._study.metric} {value:.4f}"
        told = f" after {result['step']} of {result['num_steps']} steps{shown}"
        self._say(trial, f"failed: {why}" if state == FAILED else f"{state}{told}")

    def _say(self, trial: TrialDirectory, what: str) -> None:
        finished = sum(one.is_finished for one in self._trials.all())
        print(f"[{finished}/{self._search.trials}] {trial.name}: {what}", flush=True)


def trial_overrides(study: Study, trial: TrialDirectory) -> list[str]:
    """The settings of a trial's run, after those of the base configuration."""
    assert study.search is not None
    own = [f"run.dir={trial.run_dir}", f"run.seed={study.search.seed}"]
    return [*study.settings, *trial.read("trial.json")["settings"], *own]
