"""The jobs of a run, recorded in `RUN/slurm/jobs.jsonl`: a line per submission and per start.

RUN/slurm/train.sbatch  train.yaml    the script and the configuration as submitted
          train-17.log                output of job 17, all of its starts
          jobs.jsonl
          configurations.txt          if RUN has an array of runs: the configuration of each
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmsa.foundation.parsing import read_json_objects

Facts = dict[str, Any]

SLURM_DIR_NAME = "slurm"
JOBS_NAME = "jobs.jsonl"
CONFIGURATIONS_NAME = "configurations.txt"  # of an array: one path RUN/slurm/train.yaml per line


def slurm_dir(run_dir: Path) -> Path:
    return run_dir / SLURM_DIR_NAME


def record_job(folder: Path, job: str, *, kind: str, log: str, **facts: Any) -> None:
    """Append a line: a job was submitted or has started."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"job": job, "kind": kind, "log": log, **facts, "when": time.strftime("%F %T")}
    with open(folder / JOBS_NAME, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def known_jobs(folder: Path) -> dict[str, Facts]:
    """Job -> the last facts recorded about it, the newest job last."""
    jobs: dict[str, Facts] = {}
    for facts in _lines(folder):
        jobs[facts["job"]] = {**jobs.pop(facts["job"], {}), **facts}
    return jobs


def runs_of_array(base: Path) -> list[Path]:
    """The run directories of an array that was submitted for `base`; empty if there is none."""
    try:
        text = (slurm_dir(base) / CONFIGURATIONS_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    # Not splitlines(), which also cuts at characters that a path may hold.
    return [Path(line).parent.parent for line in text.split("\n") if line]


def starts_of(folder: Path, job: str) -> list[Facts]:
    """The facts recorded at each start of a job, oldest first."""
    return [
        facts
        for facts in _lines(folder)
        if facts["job"] == job
        and isinstance(facts.get("checkpoint"), int)
        and isinstance(facts.get("status"), dict)
    ]


def newest_checkpoint_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint, or 0."""
    from mmsa.checkpoint_folders import step_of, whole_checkpoints

    return max(map(step_of, whole_checkpoints(run_dir)), default=0)


def last_save_ns(run_dir: Path) -> int:
    """When the newest complete checkpoint was completed, in ns since 1970 by its file system; or 0.

    Tells a new checkpoint from an old one where its step does not: a run that passes over a damaged
    checkpoint saves earlier steps than that one again.
    """
    from mmsa.checkpoint_folders import COMPLETE_NAME, whole_checkpoints

    saved = [path / COMPLETE_NAME for path in whole_checkpoints(run_dir)]
    return max((path.stat().st_mtime_ns for path in saved), default=0)


def without_checkpoint(starts: list[Facts], run_dir: Path) -> int:
    """How many of a job's starts found the checkpoints that the run has now: starts in a row,
    including the last, since the last new one."""
    saved_ns, step = last_save_ns(run_dir), newest_checkpoint_step(run_dir)
    return sum(
        start["saved_ns"] >= saved_ns if "saved_ns" in start else start["checkpoint"] >= step
        for start in starts
    )


def _lines(folder: Path) -> list[Facts]:
    return [
        facts
        for facts in read_json_objects(folder / JOBS_NAME)
        if all(isinstance(facts.get(key), str) for key in ("job", "kind", "log"))
    ]
