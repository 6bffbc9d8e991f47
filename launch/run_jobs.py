"""What a run directory knows of its jobs: `RUN/slurm/jobs.jsonl`, a line for each start.

RUN/slurm/train.sbatch  train.yaml    the script and the configuration as they were submitted
          train-17.log                what job 17 wrote, all of its starts
          jobs.jsonl
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FOLDER = "slurm"
JOBS = "jobs.jsonl"


def folder_of(run_dir: Path) -> Path:
    return run_dir / FOLDER


def note_job(folder: Path, job: str, *, kind: str, log: str, **facts: Any) -> None:
    """Add a line: a job was submitted, or has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"job": job, "kind": kind, "log": log, **facts, "when": time.strftime("%F %T")}
    with open(folder / JOBS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def known_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Job -> what was last noted of it, the newest last."""
    try:
        lines = (folder / JOBS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    jobs: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            noted = json.loads(line)
            jobs[noted["job"]] = {**jobs.pop(noted["job"], {}), **noted}
        except (ValueError, KeyError, TypeError):
            continue  # torn by a full disk: the other lines stand
    return jobs
