"""The runs of a study: where each is, what it is trained with, and what state it is in.

    OUT/runs/VARIANT/seed-0          or VARIANT/seed-0-fold-1
    OUT/logs/VARIANT/seed-0.log      what its processes printed
    OUT/logs/VARIANT/seed-0.jsonl    its attempts
    OUT/locks/VARIANT/seed-0         held by the driver that works on it

The files are the only state: any number of drivers may work on a study, and each may be killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launch.study.attempts import Attempts
from launch.study.question import Study
from mmsa.foundation.file_lock import FileLock, is_locked, lock_if_free
from mmsa.process.status import STATUS_NAME, read_status


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    variant: str
    seed: int
    fold: int | None  # from 1
    out: Path

    @property
    def name(self) -> str:
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return f"{self.variant}/seed-{self.seed}{fold}"

    @property
    def run_dir(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    @property
    def shards(self) -> Path | None:
        """The shards of its fold; None where the configuration names them."""
        return None if self.fold is None else self.out / "shards" / f"fold-{self.fold}"

    def report(self, split: str) -> Path:
        """Where `evaluate.py` writes the report of its best model."""
        return self.run_dir / "reports" / f"{split}-best"

    def overrides(self, study: Study) -> list[str]:
        """The settings of this run, after those of the base configuration."""
        own = [f"run.dir={self.run_dir}", f"run.seed={self.seed}"]
        if self.shards is not None:
            own.append(f"data.shards={self.shards}")
        return [*study.settings, *study.variants[self.variant], *own]

    def lock(self) -> FileLock | None:
        """The right to work on this run; None while another driver has it."""
        return lock_if_free(self._lock())

    def is_locked(self) -> bool:
        """Whether a driver works on this run."""
        return is_locked(self._lock())

    def _lock(self) -> Path:
        path = self.out / "locks" / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def was_trained_otherwise(self, digest: str) -> bool:
        """Whether its last attempt had other settings than the study has now."""
        attempts = self.attempts.all()
        return bool(attempts) and attempts[-1].get("study") != digest

    @property
    def attempts(self) -> Attempts:
        return Attempts(self.log.with_suffix(".jsonl"))

    def is_scored(self, split: str) -> bool:
        return (self.report(split) / "metrics.json").exists()

    def state(self, digest: str) -> str:
        """done, running, failed, stopped (it goes on) or waiting."""
        if self.is_scored("val"):
            return "done"
        if self.is_locked():
            return "running"
        if self.attempts.are_given_up(digest):
            return "failed"
        return "stopped" if read_status(self.run_dir / STATUS_NAME) else "waiting"


def fold_numbers(study: Study) -> list[int | None]:
    """The folds of the study, from 1; one None where it has none."""
    from launch.folds import protocols_of

    if study.folds is None:
        return [None]
    count = len(protocols_of(study.folds.protocol))
    return list(study.folds.only or range(1, count + 1))


def trials_of(study: Study, out: Path) -> list[Trial]:
    """All runs: every variant of a fold and seed before the next, so that early ones compare."""
    return [
        Trial(variant, seed, fold, out)
        for seed in study.seeds
        for fold in fold_numbers(study)
        for variant in study.variants
    ]
