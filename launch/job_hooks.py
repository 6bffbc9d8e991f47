"""`python -m launch job`: what the job scripts ask, on the first node of a job.

job where -- ARGUMENTS OF TRAIN.PY    prints the run directory
job begin -- ARGUMENTS OF TRAIN.PY    the same, and notes in it that the job has begun
job end RUN ...                       says how a start has ended; the exit code is what to do
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import job_log, slurm_queue
from mmsa.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from mmsa.extensions import add_import_option

Status = Mapping[str, Any]


def add_parser(commands: Any) -> None:
    job = commands.add_parser(
        "job",
        help="what the job scripts ask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = job.add_subparsers(dest="task", required=True, metavar="TASK")
    tasks.add_parser("where", help="the run directory").set_defaults(run=_where)
    tasks.add_parser("begin", help="the run directory, noting the job").set_defaults(run=_begin)
    end = tasks.add_parser("end", help="how a start has ended, and what to do")
    end.add_argument("run_dir", type=Path)
    end.add_argument("--heard", default="", help="the signal that the script was sent")
    end.add_argument("--max-restarts", type=int, default=100)
    end.add_argument("--max-retries", type=int, default=5)
    end.set_defaults(run=_end)


def _run_dir(words: list[str]) -> Path:
    from mmsa.config import load_config

    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    add_import_option(parser)
    arguments = parser.parse_args(words)
    run_dir = load_config(arguments.config, arguments.overrides).run.dir
    if run_dir is None:
        raise UserError("run.dir is not given; add run.dir=runs/first")
    return Path(run_dir)


def _where(arguments: argparse.Namespace) -> None:
    print(_run_dir(arguments.rest))


def _begin(arguments: argparse.Namespace) -> None:
    from mmsa.process.status import read_status

    run_dir = _run_dir(arguments.rest)
    job = os.environ["SLURM_JOB_ID"]
    job_log.note_job(
        job_log.folder_of(run_dir),
        job,
        kind="train",
        log=slurm_queue.facts(job).get("StdOut", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        checkpoint=job_log.newest_checkpoint(run_dir),
        status=read_status(run_dir / "status.json"),
    )
    print(run_dir)


def _end(arguments: argparse.Namespace) -> int:
    from mmsa.process.status import read_status

    run_dir: Path = arguments.run_dir
    starts = job_log.starts_of(job_log.folder_of(run_dir), os.environ["SLURM_JOB_ID"])
    checkpoint = job_log.newest_checkpoint(run_dir)
    code, words = verdict(
        read_status(run_dir / "status.json"),
        starts[-1]["status"] if starts else {},
        heard=arguments.heard,
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        in_vain=sum(start["checkpoint"] >= checkpoint for start in starts),
        max_restarts=arguments.max_restarts,
        max_retries=arguments.max_retries,
    )
    print(f"{run_dir}: {words}", file=sys.stdout if code == 0 else sys.stderr)
    return code


def verdict(
    status: Status,
    before: Status,
    *,
    heard: str,
    restarts: int,
    in_vain: int,
    max_restarts: int,
    max_retries: int,
) -> tuple[int, str]:
    """(exit code, words) for a start that ended with `status`, which was `before` when it began.

    0: done. `EXIT_PREEMPTED`: start the same job again. Anything else: do not. `restarts` is how
    often SLURM has started this job again so far, `in_vain` how many starts in a row, this one
    among them, have brought no new checkpoint; `heard` the signal that the script was sent, if
    any. What the user has to mend comes back at each start, so it is not tried again.
    """
    if status.get("state") == "done":
        return 0, "done"
    spoke = status != before  # else what it says is of an earlier start
    step, reason = status.get("step", 0), "".join(str(status.get("reason", "")).splitlines()[:1])
    failed = spoke and status.get("state") == "failed"
    if failed and status.get("exit_code") == EXIT_USER_ERROR:
        return EXIT_USER_ERROR, f"failed, and would fail again: {reason}"
    if spoke and status.get("state") == "preempted":
        what = f"stopped at step {step}"
    elif heard:
        what = f"stopped by SIG{heard} before it could save"
    elif failed:
        what = f"failed at step {step} ({reason})"
    elif spoke:
        what = f"ended without a word after step {step}: killed, or its memory ran out"
    else:
        what = "ended before it could say anything in status.json; the log above says why"
    if restarts >= max_restarts:
        return 1, f"{what}; not started again after {restarts} restarts (MAX_RESTARTS)"
    if in_vain > max_retries:
        vain = f"{in_vain} starts in a row brought no checkpoint (MAX_RETRIES={max_retries})"
        return 1, f"{what}; not started again: {vain}"
    return EXIT_PREEMPTED, f"{what}; to be started again (restart {restarts + 1})"
