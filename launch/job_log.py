"""What a run directory knows of its jobs: `RUN/slurm/jobs.jsonl`, a line for each start.

RUN/slurm/train.sbatch  train.yaml    the script and the configuration as they were submitted
          train-17.log                what job 17 wrote, all of its starts
          jobs.jsonl
          configurations.txt          of an array of runs below RUN: the configuration of each
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

FOLDER = "slurm"
JOBS = "jobs.jsonl"
LISTED = "configurations.txt"  # of an array of runs: RUN/slurm/train.yaml of each, a line each


def folder_of(run_dir: Path) -> Path:
    return run_dir / FOLDER


def note_job(folder: Path, job: str, *, kind: str, log: str, **facts: Any) -> None:
    """Add a line: a job was submitted, or has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"job": job, "kind": kind, "log": log, **facts, "when": time.strftime("%F %T")}
    with open(folder / JOBS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def known_jobs(folder: Path) -> dict[str, Facts]:
    """Job -> what was last noted of it, the newest last."""
    jobs: dict[str, Facts] = {}
    for noted in _lines(folder):
        jobs[noted["job"]] = {**jobs.pop(noted["job"], {}), **noted}
    return jobs


def runs_of_array(base: Path) -> list[Path]:
    """The run directories of an array that was submitted below `base`; empty where none was."""
    try:
        lines = (folder_of(base) / LISTED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [Path(line).parent.parent for line in lines]


def starts_of(folder: Path, job: str) -> list[Facts]:
    """What each start of a job has noted when it began, the first one first."""
    return [noted for noted in _lines(folder) if noted["job"] == job and "restart" in noted]


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    from mmsa.export import whole_checkpoints

    whole = whole_checkpoints(run_dir)
    return int(whole[0].name.removeprefix("step-")) if whole else 0


def _lines(folder: Path) -> list[Facts]:
    try:
        lines = (folder / JOBS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            noted = json.loads(line)
            found += [noted] if "job" in noted else []
        except (ValueError, TypeError):
            continue  # torn by a full disk: the other lines stand
    return found
