"""`python -m launch job`: called by the job scripts, on the first node of a job.

job where -- ARGUMENTS OF TRAIN.PY    prints the run directory
job begin -- ARGUMENTS OF TRAIN.PY    prints it and records in it that the job has started
job end RUN ...                       prints how a start ended; the exit code says what to do next
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import job_log, slurm_queue
from launch.nccl_endings import log_of_start, nccl_ending
from mmsa.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError

Status = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    tasks.add_parser("where", help="print the run directory").set_defaults(run=_where)
    tasks.add_parser("begin", help="print it and record the start").set_defaults(run=_begin)
    end = tasks.add_parser("end", help="how a start ended, and what to do next")
    end.add_argument("run_dir", type=Path)
    end.add_argument("--heard", default="", help="the signal that the script received")
    end.add_argument("--max-restarts", type=int, default=100)
    end.add_argument("--max-retries", type=int, default=5)
    end.set_defaults(run=_end)


def _run_dir(words: list[str]) -> Path:
    from mmsa.config import load_config
    from mmsa.process.arguments import take_configuration, training_parser

    arguments = training_parser(None).parse_intermixed_args(words)
    file, overrides = take_configuration(arguments.config, arguments.overrides)
    run_dir = load_config(file, overrides).run.dir
    if run_dir is None:
        raise UserError("run.dir is missing; add run.dir=runs/first")
    return Path(run_dir)


def _where(arguments: argparse.Namespace) -> None:
    print(_run_dir(arguments.rest))


def _begin(arguments: argparse.Namespace) -> None:
    from mmsa.process.status import read_status

    run_dir = _run_dir(arguments.rest)
    job = slurm_queue.ThisJob.from_environment()
    job_log.record_job(
        job_log.slurm_dir(run_dir),
        job.name,
        kind="train",
        log=_log_of(run_dir, job),
        restart=job.restarts,
        nodes=job.nodes,
        checkpoint=job_log.newest_checkpoint_step(run_dir),
        saved_ns=job_log.last_save_ns(run_dir),
        status=read_status(run_dir / "status.json"),
    )
    print(run_dir)


def _log_of(run_dir: Path, job: slurm_queue.ThisJob) -> str:
    """Where a job's log is: as submitted, else as SLURM says, which shows a % in a path wrongly."""
    jobs = job_log.known_jobs(job_log.slurm_dir(run_dir))
    return str(jobs.get(job.name, {}).get("log") or slurm_queue.facts(job.name).get("StdOut", ""))


def _end(arguments: argparse.Namespace) -> int:
    from mmsa.process.status import read_status

    run_dir: Path = arguments.run_dir
    job = slurm_queue.ThisJob.from_environment()
    starts = job_log.starts_of(job_log.slurm_dir(run_dir), job.name)
    code, message = verdict(
        read_status(run_dir / "status.json"),
        starts[-1]["status"] if starts else {},
        signal_name=arguments.heard,
        restarts=job.restarts,
        starts_without_checkpoint=job_log.without_checkpoint(starts, run_dir),
        max_restarts=arguments.max_restarts,
        max_retries=arguments.max_retries,
        nccl=nccl_ending(log_of_start(_log_of(run_dir, job), f"job {job.number}, restart ")),
    )
    print(f"{run_dir}: {message}", file=sys.stdout if code == 0 else sys.stderr)
    return code


def verdict(
    status: Status,
    before: Status,
    *,
    signal_name: str,
    restarts: int,
    starts_without_checkpoint: int,
    max_restarts: int,
    max_retries: int,
    nccl: str | None = None,
) -> tuple[int, str]:
    """(exit code, message) for a start that ended with `status`, which was `before` when it began.

    0: done. `EXIT_PREEMPTED`: requeue the job. Anything else: do not. `restarts` counts the
    restarts of this job so far, `starts_without_checkpoint` the starts in a row, including this
    one, without a new checkpoint; `signal_name` is the signal that the script received, if any,
    and `nccl` what NCCL's watchdog said of a rank that it ended. A user error would recur at every
    start, so it is not retried.
    """
    if status.get("state") == "done":
        return 0, "done"
    reported = status != before  # otherwise the status is that of an earlier start
    step, reason = status.get("step", 0), "".join(str(status.get("reason", "")).splitlines()[:1])
    failed = reported and status.get("state") == "failed"
    if failed and status.get("exit_code") == EXIT_USER_ERROR:
        return EXIT_USER_ERROR, f"failed with an error that a restart cannot fix: {reason}"
    if reported and status.get("state") == "preempted":
        what = f"stopped at step {step}"
    elif signal_name:
        what = f"stopped by SIG{signal_name} before it could save"
    elif failed:
        what = f"failed at step {step} ({reason})"
    elif reported:
        why = nccl or "killed, or out of memory"
        what = f"ended without reporting a reason after step {step}: {why}"
    else:
        what = "ended before it wrote status.json; see the log above"
    if restarts >= max_restarts:
        return 1, f"{what}; giving up after {restarts} restarts (MAX_RESTARTS)"
    if starts_without_checkpoint > max_retries:
        return 1, (
            f"{what}; giving up after {starts_without_checkpoint} starts in a row without a new "
            f"checkpoint (MAX_RETRIES={max_retries})"
        )
    return EXIT_PREEMPTED, f"{what}; requeueing (restart {restarts + 1})"
