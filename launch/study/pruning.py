"""Stop the hopeless trials of a search while they train."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from launch.study.question import Study
from launch.study.search import history
from launch.study.search.directories import PRUNING, TrialDirectories, TrialDirectory
from launch.study.search.validations import Validation, read_validations
from launch.study.workers import send
from mmsa.process.status import STATUS_NAME, read_status
from mmsa.training.tracking import METRICS_NAME


def values_so_far(trial: TrialDirectory, metric: str) -> list[float]:
    """The metric at the validations of a trial that still runs."""
    return [one.value for one in read_validations(trial.run_dir, metric, metric)]


class Judge:
    """Asks the pruner after each new validation of a run, and has a hopeless run save and end.

    The run ends by its ordinary stop, SIGTERM, on which its ranks agree.
    """

    def __init__(
        self, study: Study, trials: TrialDirectories, trial: TrialDirectory, select_by: str
    ) -> None:
        assert study.search is not None
        self._search = study.search
        self._metric = study.metric
        self._trials = trials
        self._trial = trial
        self._select_by = select_by
        self._judged = int(trial.read("judged.json").get("count", 0))
        self._size = -1
        self._stopped = False

    def __call__(self, child: subprocess.Popen[bytes]) -> None:
        try:
            size = (self._trial.run_dir / METRICS_NAME).stat().st_size
        except OSError:
            return
        if size == self._size or self._stopped:
            return
        self._size = size
        validations = read_validations(self._trial.run_dir, self._metric, self._select_by)
        for count in range(self._judged + 1, len(validations) + 1):
            if self._is_hopeless(validations[:count]):
                self._trial.write("result.json", {"state": PRUNING, "step": validations[-1].step})
                self._stopped = True
                send(child, signal.SIGTERM)
                return

    def _is_hopeless(self, validations: Sequence[Validation]) -> bool:
        def values(trial: TrialDirectory) -> list[float]:
            if trial.number == self._trial.number:
                return [one.value for one in validations]
            return values_so_far(trial, self._metric)

        study = history.history(self._search, self._metric, self._trials.all(), values)
        hopeless, attributes = history.is_hopeless(study, self._trial.number)
        self._judged = len(validations)
        self._trial.write("judged.json", {"count": self._judged, "attributes": attributes})
        num_steps = read_status(self._trial.run_dir / STATUS_NAME).get("num_steps")
        return hopeless and validations[-1].step != num_steps  # at its end nothing is saved
