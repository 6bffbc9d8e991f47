"""`python -m launch job`: what the job scripts ask, on the first node of a job.

job where -- ARGUMENTS OF TRAIN.PY    prints the run directory
job begin -- ARGUMENTS OF TRAIN.PY    the same, and notes in it that the job has begun
job end RUN ...                       says how a start has ended; the exit code is what to do
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import queue, run_jobs
from mmsa.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError

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
    end.add_argument("--last-word", default="", help="status.json before this start")
    end.add_argument("--heard", default="", help="the signal that the script was sent")
    end.add_argument("--restarts", type=int, default=0)
    end.add_argument("--max-restarts", type=int, default=100)
    end.add_argument("--max-retries", type=int, default=3)
    end.set_defaults(run=_end)


def _run_dir(words: list[str]) -> Path:
    from mmsa.config import load_config

    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args(words)
    run_dir = load_config(arguments.config, arguments.overrides).run.dir
    if run_dir is None:
        raise UserError("run.dir is not given; add run.dir=runs/first")
    return Path(run_dir)


def _where(arguments: argparse.Namespace) -> None:
    print(_run_dir(arguments.rest))


def _begin(arguments: argparse.Namespace) -> None:
    run_dir = _run_dir(arguments.rest)
    job = os.environ["SLURM_JOB_ID"]
    run_jobs.note_job(
        run_jobs.folder_of(run_dir),
        job,
        kind="train",
        log=queue.facts(job).get("StdOut", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
    )
    print(run_dir)


def _end(arguments: argparse.Namespace) -> int:
    from mmsa.command import read_status

    code, words = verdict(
        read_status(arguments.run_dir / "status.json"),
        _parsed(arguments.last_word),
        heard=arguments.heard,
        restarts=arguments.restarts,
        max_restarts=arguments.max_restarts,
        max_retries=arguments.max_retries,
    )
    print(f"{arguments.run_dir}: {words}", file=sys.stdout if code == 0 else sys.stderr)
    return code


def _parsed(text: str) -> Status:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def verdict(
    status: Status,
    before: Status,
    *,
    heard: str,
    restarts: int,
    max_restarts: int,
    max_retries: int,
) -> tuple[int, str]:
    """(exit code, words) for a start that ended with `status`, which was `before` when it began.

    0: done. `EXIT_PREEMPTED`: start the same job again. Anything else: do not. `restarts` is how
    often SLURM has started this job again so far, `heard` the signal that the script was sent, if
    any. A fault that the user has to mend comes back at each start, so it is not tried again; one
    that came further than the start before it is new, and counts as a restart and no retry.
    """
    if status.get("state") == "done":
        return 0, "done"
    spoke = status != before  # else what it says is of an earlier start
    step, reason = status.get("step", 0), str(status.get("reason", "")).splitlines()[:1]
    failed = spoke and status.get("state") == "failed"
    if failed and status.get("exit_code") == EXIT_USER_ERROR:
        return EXIT_USER_ERROR, f"failed, and would fail again: {''.join(reason)}"
    if heard or (spoke and status.get("state") == "preempted"):
        what = f"stopped at step {step}" if spoke else f"stopped by SIG{heard} during its start-up"
        limit, name = max_restarts, "MAX_RESTARTS"
    else:
        further = spoke and step > before.get("step", 0)
        limit, name = (max_restarts, "MAX_RESTARTS") if further else (max_retries, "MAX_RETRIES")
        what = f"failed at step {step} ({''.join(reason)})"
        if not spoke:
            what = "ended before it could say anything in status.json; the log above says why"
        elif not failed:
            what = f"ended without a word after step {step}: killed, or its memory ran out"
    if restarts >= limit:
        return 1, f"{what}; not started again after {restarts} restarts ({name}={limit})"
    return EXIT_PREEMPTED, f"{what}; this job starts again (restart {restarts + 1} of {limit})"
