"""What is asked of SLURM, by its own commands: partitions, submission, where a job stands."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mmsa.errors import UserError

_TIMEOUT_S = 60


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "sinfo", "scontrol"))


def require() -> None:
    """Raise `UserError` where there is no SLURM to be asked."""
    if not available():
        raise UserError(
            "there is no SLURM on this machine (looked for sbatch, squeue, sinfo and scontrol in "
            "PATH). Submit from a login node of the cluster; `module load slurm` may bring the "
            "commands. Here a run starts with: accelerate launch --config_file "
            "accelerate_config.yaml --num_processes N train.py ..., and --dry-run shows the script"
        )


def ask(*command: str) -> str:
    """Standard output of a SLURM command; `UserError` with SLURM's own words where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"SLURM did not answer `{command[0]}` in {_TIMEOUT_S} s; try again later"
        ) from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"SLURM refuses `{command[0]}`: {words}")
    return done.stdout


def submit(script: Path, *options: str) -> str:
    """Submit a script; returns the job's number. `UserError` with SLURM's words if refused."""
    answer = ask("sbatch", "--parsable", *options, str(script))
    return answer.strip().split(";")[0]  # NUMBER, or NUMBER;CLUSTER


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs that were just submitted."""
    ask("scancel", *jobs)


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Job -> state, of those that SLURM has queued or running: "RUNNING", "PENDING (Priority)".

    An array's number stands for all of its tasks, 17_3 for one. In the order of `jobs`; empty where
    there is no SLURM.
    """
    wanted = dict.fromkeys(jobs)
    if not wanted or not available():
        return {}
    found: dict[str, list[str]] = {}
    for line in ask("squeue", "--noheader", "--array", "--format", "%A|%F|%K|%T|%r").splitlines():
        number, array, task, state, reason = line.strip().split("|", maxsplit=4)
        words = state if reason in ("None", "") else f"{state} ({reason})"
        for job in {number, array, f"{array}_{task}"} & set(wanted):
            found.setdefault(job, []).append(words)
    return {job: ", ".join(dict.fromkeys(found[job])) for job in wanted if job in found}


def time_left(job: str) -> str | None:
    """Of a running job's limit, as SLURM writes it (3:59:01); None where it has none.

    SLURM has words as well: UNLIMITED, INVALID (a limit of years).
    """
    try:
        answer = ask("squeue", "--noheader", "--jobs", job, "--states=RUNNING", "--format", "%L")
    except UserError:
        return None
    return answer.strip() if re.fullmatch(r"[\d:-]+", answer.strip()) else None


def facts(job: str) -> dict[str, str]:
    """What `scontrol show job` says: StdOut, JobState, ...; empty for a job that is forgotten."""
    if not available():
        return {}
    try:
        answer = ask("scontrol", "show", "job", "--oneliner", job)
    except UserError:
        return {}
    first = answer.splitlines()[0] if answer.strip() else ""
    return dict(re.findall(r"(\w+)=(\S*)", first))
