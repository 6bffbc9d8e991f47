"""`python -m launch status RUN | JOB`: the state of a run, from its files and SLURM's queue.

For several runs (`status runs/*`) and for an array it prints a table. It only reads and never
changes a run. What it reads may be torn, or written by others: odd facts count as unknown.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.status_table import clock, print_table
from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_yaml, read_json_objects

_TAIL_BYTES = 65536  # read from the end of metrics.jsonl
_MEASURES = {  # kind of line in it -> the numbers that are shown
    "train": ("loss", "samples_per_s"),
    "validation": ("loss", "accuracy", "macro_f1", "weighted_f1"),
}
_KILLED = "; but SLURM has no job for it: it was killed. Submit it again"

Facts = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="+", metavar="RUN|JOB", help="run directories or job numbers"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from launch import job_log

    if len(arguments.targets) == 1:
        run_dir = find_run(arguments.targets[0])
        runs = job_log.runs_of_array(run_dir)
        if not runs:
            _print_one(facts_of(run_dir), as_json=arguments.json)
            return
        facts, unknown = [facts_of(run) for run in runs], list[str]()
    else:
        facts, unknown = _facts_of_all(arguments.targets)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    print_table(facts, _notes(facts), unknown)


def _facts_of_all(targets: Sequence[str]) -> tuple[list[Facts], list[str]]:
    """The facts of all runs of `targets`, and those targets that are not runs.

    A shell's `runs/*` names other files too. Raises `UserError` where there is no run at all.
    """
    from launch import job_log

    facts: list[Facts] = []
    unknown: list[str] = []
    for target in targets:
        try:
            run_dir = find_run(target)
            runs = job_log.runs_of_array(run_dir) or [run_dir]
            facts += [facts_of(run) for run in runs]
        except UserError:
            unknown.append(target)
    if not facts:
        raise UserError(
            f"none of {', '.join(targets)} is a run; give run directories, or a job's number"
        )
    return facts, unknown


def _notes(facts: Sequence[Facts]) -> dict[str, str]:
    """Run -> why it failed, or why it does not go on."""
    texts = {run["run"]: _state_text(run) for run in facts}
    return {
        run["run"]: texts[run["run"]].splitlines()[0]
        for run in facts
        if run["state"] == "failed" or texts[run["run"]].endswith(_KILLED)
    }


def _print_one(facts: Facts, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for name, text in as_text(facts).items():
        print(f"{name:<11} {text}")


def find_run(target: str) -> Path:
    """The run directory of a path or a job number; `UserError` if there is none."""
    from launch import job_log, slurm_queue

    path = Path(target)
    if path.is_dir():
        return path
    if not target.replace("_", "").isdecimal():
        raise UserError(f"{target} is neither a directory nor a job number; give one of them")
    facts = slurm_queue.facts(target)
    if "ArrayTaskId" in facts and target != facts.get("ArrayJobId"):
        target = f"{facts['ArrayJobId']}_{facts['ArrayTaskId']}"  # as jobs.jsonl has it
    log = Path(facts.get("StdOut", ""))
    if not log.parent.is_dir():  # SLURM shows a % in a path in another way than it uses it
        log = Path(facts.get("Command", ""))
    if log.parent.name == job_log.SLURM_DIR_NAME:
        base = log.parent.parent
        if target in job_log.known_jobs(log.parent):
            return base
        task_runs = (
            run
            for run in job_log.runs_of_array(base)
            if target in job_log.known_jobs(job_log.slurm_dir(run))
        )
        return next(task_runs, base)
    if log.parent.name.endswith(f".{job_log.SLURM_DIR_NAME}"):
        raise UserError(f"job {target} is a packing job and has no run; its log: {log}")
    raise UserError(
        f"job {target} was not submitted with `python -m launch submit`, or SLURM has forgotten "
        "it; give the run directory"
    )


def facts_of(run_dir: Path) -> Facts:
    """The facts about a run, None if unknown. Raises `UserError` if it is not a run."""
    from launch import job_log, slurm_queue
    from mmsa.process.status import read_status

    status = read_status(run_dir / "status.json")
    jobs = job_log.known_jobs(job_log.slurm_dir(run_dir))
    if not status and not jobs:
        raise UserError(
            f"{run_dir} is not a run: it has neither a status.json that can be read nor a "
            "recorded job"
        )
    queued = slurm_queue.states(jobs)
    # The job to follow: a queued training job, rather than an evaluation that waits for it.
    train_jobs = [number for number in queued if jobs[number]["kind"] == "train"]
    job = next(reversed(train_jobs or list(queued) or list(jobs)), None)
    metrics = last_metrics(run_dir / "metrics.jsonl")
    train = metrics.get("train", {})
    step = max(_whole(status.get("step")) or 0, train.get("step", 0))
    num_steps = _whole(status.get("num_steps"))
    return {
        "run": str(run_dir),
        "state": _text(status.get("state")),
        "reason": _text(status.get("reason")),
        "step": step,
        "num_steps": num_steps,
        "samples_per_s": train.get("samples_per_s"),
        "loss": train.get("loss"),
        "seconds_left": None
        if status.get("state") == "done"
        else _seconds_left(run_dir, num_steps, step, train.get("samples_per_s")),
        "validation": metrics.get("validation"),
        "restarts": _whole(status.get("restarts")),
        "job": job,
        "queued": queued,
        "job_time_left": slurm_queue.time_left(job) if job in queued else None,
        "log": jobs[job]["log"] if job else str(run_dir / "log.txt"),
        "seconds_since_word": _age_s(run_dir),
    }


def last_metrics(file: Path) -> dict[str, Facts]:
    """The last complete line of each kind near the end of `metrics.jsonl`."""
    found: dict[str, Facts] = {}
    for content in read_json_objects(file, last_bytes=_TAIL_BYTES):
        kind = content.get("kind")
        if isinstance(kind, str) and kind in _MEASURES and _whole(content.get("step")) is not None:
            numbers = {name: content.get(name) for name in _MEASURES[kind]}
            if all(map(_is_number, numbers.values())):
                found[kind] = content
    return found


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _seconds_left(
    run_dir: Path, num_steps: int | None, step: int, speed: float | None
) -> int | None:
    """Estimated at the last speed, without validations and saves."""
    import yaml

    if not speed or not num_steps:
        return None
    try:
        config = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
        samples = int(config["train"]["global_batch_size"]) * (num_steps - step)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return round(samples / speed)


def _age_s(run_dir: Path) -> int | None:
    """Seconds since the run last wrote metrics or its status."""
    times = [
        path.stat().st_mtime
        for path in (run_dir / "metrics.jsonl", run_dir / "status.json")
        if path.exists()
    ]
    return round(time.time() - max(times)) if times else None


def as_text(facts: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text for people; unknown facts are left out."""
    texts = {"run": facts["run"], "state": _state_text(facts)}
    if facts["num_steps"]:
        texts["step"] = f"{facts['step']} of {facts['num_steps']}"
    if facts["loss"] is not None:
        texts["loss"] = f"{facts['loss']:.4f}"
        texts["speed"] = f"{facts['samples_per_s']:.1f} samples/s"
    if facts["seconds_left"] is not None:
        texts["time left"] = f"{clock(facts['seconds_left'])} at this speed, without validations"
    validation = facts["validation"]
    if validation:
        shown = "  ".join(f"{name} {validation[name]:.4f}" for name in _MEASURES["validation"])
        texts["validation"] = f"after step {validation['step']}: {shown}"
    if facts["restarts"] is not None:
        texts["restarts"] = str(facts["restarts"])
    if facts["queued"]:
        left = {facts["job"]: f", {facts['job_time_left']} left of its time limit"}
        if not facts["job_time_left"]:
            left = {}
        texts["jobs"] = "; ".join(
            f"{job} {state}{left.get(job, '')}"
            for job, state in sorted(facts["queued"].items(), key=lambda item: _number(item[0]))
        )
    texts["log"] = facts["log"]
    return texts


def _state_text(facts: Mapping[str, Any]) -> str:
    state, reason, age = facts["state"], facts["reason"], facts["seconds_since_word"]
    text = f"{state} ({reason})" if reason else str(state)
    if state is None:
        if "RUNNING" in facts["queued"].values():
            return "starting: its job is running but has not reported anything yet"
        return "not started" if facts["queued"] else "not started, and no job is queued"
    if state == "running":
        text += f", last update {clock(age)} ago"
        if facts["job"] and not facts["queued"]:
            text += _KILLED
    elif state == "preempted":
        text += "; will resume" if facts["queued"] else "; the same command resumes it"
    return text


def _number(job: str) -> tuple[int, ...]:
    return tuple(int(part) for part in job.split("_") if part.isdecimal())
