"""SLURM's commands: submit and cancel jobs, and query their state."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError

_TIMEOUT_S = 60
# Facts of `scontrol show job` that take a line each: their values may contain spaces.
_WHOLE_LINE = ("Command=", "WorkDir=", "StdErr=", "StdIn=", "StdOut=", "Comment=")


@dataclass(frozen=True)
class ThisJob:
    """The SLURM job in which this process runs, from the environment that SLURM sets."""

    number: str  # SLURM_JOB_ID
    restarts: int
    nodes: str
    # What SLURM's commands call this job alone: its number, or ARRAY_TASK for a task of an array,
    # one of whose tasks has the array's number.
    name: str

    @classmethod
    def from_environment(cls) -> ThisJob:
        array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK"))
        number = os.environ["SLURM_JOB_ID"]
        return cls(
            number=number,
            name=f"{array}_{task}" if array else number,
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        )


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "sinfo", "scontrol"))


def require() -> None:
    """Raise `UserError` if this machine has no SLURM."""
    if not available():
        raise UserError(
            "there is no SLURM on this machine (looked for sbatch, squeue, sinfo and scontrol in "
            "PATH). Submit from a login node of the cluster; `module load slurm` may provide the "
            "commands. Without SLURM, start a run with: python -m launch run -n N CONFIG ...; "
            "--dry-run shows the script"
        )


def run_slurm(*command: str) -> str:
    """Standard output of a SLURM command; `UserError` with its error message if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"SLURM did not answer `{command[0]}` in {_TIMEOUT_S} s; try again later"
        ) from None
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"SLURM's `{command[0]}` failed: {message}")
    return done.stdout


def submit(script: Path, *options: str) -> str:
    """Submit a script; returns the job's number. `UserError` with SLURM's message if it fails."""
    answer = run_slurm("sbatch", "--parsable", *options, str(script))
    return answer.strip().split(";")[0]  # NUMBER, or NUMBER;CLUSTER


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs that were just submitted."""
    run_slurm("scancel", *jobs)


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Job -> state, such as "RUNNING" or "PENDING (Priority)", of queued and running jobs.

    The number of an array covers all of its tasks, 17_3 only one. In the order of `jobs`; empty
    without SLURM.
    """
    wanted = dict.fromkeys(jobs)
    if not wanted or not available():
        return {}
    found: dict[str, list[str]] = {}
    for line in run_slurm(
        "squeue", "--noheader", "--array", "--format", "%A|%F|%K|%T|%r"
    ).splitlines():
        number, array, task, state, reason = line.strip().split("|", maxsplit=4)
        text = state if reason in ("None", "") else f"{state} ({reason})"
        for job in {number, array, f"{array}_{task}"} & set(wanted):
            found.setdefault(job, []).append(text)
    return {job: ", ".join(dict.fromkeys(found[job])) for job in wanted if job in found}


def time_left(job: str) -> str | None:
    """Time left until a running job's limit, as SLURM writes it (3:59:01); None if unlimited.

    SLURM also answers with words: UNLIMITED, INVALID (a limit of years).
    """
    try:
        answer = run_slurm(
            "squeue", "--noheader", "--jobs", job, "--states=RUNNING", "--format", "%L"
        )
    except UserError:
        return None
    return answer.strip() if re.fullmatch(r"[\d:-]+", answer.strip()) else None


def facts(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`: StdOut, JobState, ...; empty for a job SLURM forgot."""
    if not available():
        return {}
    try:
        answer = run_slurm("scontrol", "show", "job", job)
    except UserError:
        return {}
    found: dict[str, str] = {}
    for line in answer.strip().partition("\n\n")[0].splitlines():  # of an array: its first task
        if line.strip().startswith(_WHOLE_LINE):
            key, _, value = line.strip().partition("=")
            found[key] = value
        else:
            found |= dict(re.findall(r"(\w+)=(\S*)", line))
    return found
