"""`python -m launch status RUN | JOB`: how a run stands, from its files and SLURM's queue.

Of an array of runs, a line each. Reads alone: a run is not touched by being looked at.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsa.errors import UserError

_TAIL_BYTES = 65536  # of metrics.jsonl: its last lines

Facts = dict[str, Any]


def add_parser(commands: Any) -> None:
    status = commands.add_parser("status", help="how a run stands", description=__doc__)
    status.add_argument("target", metavar="RUN|JOB", help="run directory, or the number of a job")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from launch import job_log

    run_dir = find_run(arguments.target)
    runs = job_log.runs_of_array(run_dir)
    if runs:
        _tell_all(runs, as_json=arguments.json)
        return
    facts = facts_of(run_dir)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for name, words in in_words(facts).items():
        print(f"{name:<11} {words}")


def _tell_all(runs: list[Path], *, as_json: bool) -> None:
    """The runs of an array."""
    facts = [facts_of(run) for run in runs]
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for one in facts:
        words = in_words(one)
        shown = [words["state"], f"step {words.get('step', '0')}", words.get("validation", "")]
        print("  ".join([one["run"], *filter(None, shown)]))


def find_run(target: str) -> Path:
    """The run directory of a path or of a job's number; `UserError` where there is none."""
    from launch import job_log, slurm_queue

    path = Path(target)
    if path.is_dir():
        return path
    if not target.replace("_", "").isdecimal():
        raise UserError(f"{target} is no directory and no number of a job; give one of the two")
    log = Path(slurm_queue.facts(target).get("StdOut", ""))
    if log.parent.name == job_log.FOLDER:
        base = log.parent.parent
        if target in job_log.known_jobs(log.parent):
            return base
        of_tasks = (
            run
            for run in job_log.runs_of_array(base)
            if target in job_log.known_jobs(job_log.folder_of(run))
        )
        return next(of_tasks, base)
    if log.parent.name.endswith(f".{job_log.FOLDER}"):
        raise UserError(f"job {target} trains no run, it packs; its log: {log}")
    raise UserError(
        f"job {target} is not one of `python -m launch submit`, or SLURM has forgotten it; give "
        "the run directory"
    )


def facts_of(run_dir: Path) -> Facts:
    """What is known of a run, and None for what is not. Raises `UserError` for no run."""
    from launch import job_log, slurm_queue
    from mmsa.process.status import read_status

    status = read_status(run_dir / "status.json")
    jobs = job_log.known_jobs(job_log.folder_of(run_dir))
    if not status and not jobs:
        raise UserError(f"{run_dir} is no run: neither status.json nor a job's note is there")
    queued = slurm_queue.states(jobs)
    # The one to follow: of those in the queue, before an evaluation that waits for its training.
    trains = [one for one in queued if jobs[one]["kind"] == "train"]
    job = next(reversed(trains or list(queued) or list(jobs)), None)
    metrics = last_metrics(run_dir / "metrics.jsonl")
    train = metrics.get("train", {})
    step = max(status.get("step", 0), train.get("step", 0))
    return {
        "run": str(run_dir),
        "state": status.get("state"),
        "reason": status.get("reason") or None,
        "step": step,
        "num_steps": status.get("num_steps"),
        "samples_per_s": train.get("samples_per_s"),
        "loss": train.get("loss"),
        "seconds_left": _seconds_left(run_dir, status, step, train),
        "validation": metrics.get("validation"),
        "restarts": status.get("restarts"),
        "job": job,
        "queued": queued,
        "job_time_left": slurm_queue.time_left(job) if job in queued else None,
        "log": jobs[job]["log"] if job else str(run_dir / "log.txt"),
        "seconds_since_word": _age_s(run_dir),
    }


def last_metrics(file: Path) -> dict[str, Facts]:
    """The last line of each kind among the last of `metrics.jsonl`; one being written is left."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    found: dict[str, Facts] = {}
    for line in lines:
        try:
            content = json.loads(line)
            found[content["kind"]] = content
        except (ValueError, KeyError, TypeError):
            continue  # cut at the front by us, or at the end by its writer
    return found


def _seconds_left(run_dir: Path, status: Facts, step: int, train: Facts) -> int | None:
    """To the last step at the last speed: validations and saves come on top."""
    import yaml

    speed, num_steps = train.get("samples_per_s"), status.get("num_steps")
    if not speed or not num_steps or status.get("state") == "done":
        return None
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        samples = int(config["train"]["global_batch_size"]) * (num_steps - step)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return round(samples / speed)


def _age_s(run_dir: Path) -> int | None:
    """Seconds since the run last wrote a measure or its status."""
    times = [
        path.stat().st_mtime
        for path in (run_dir / "metrics.jsonl", run_dir / "status.json")
        if path.exists()
    ]
    return round(time.time() - max(times)) if times else None


def in_words(facts: Mapping[str, Any]) -> dict[str, str]:
    """Name -> words, for a person to read; what is not known is left out."""
    words = {"run": facts["run"], "state": _state_in_words(facts)}
    if facts["num_steps"]:
        words["step"] = f"{facts['step']} of {facts['num_steps']}"
    if facts["loss"] is not None:
        words["loss"] = f"{facts['loss']:.4f}"
        words["speed"] = f"{facts['samples_per_s']:.1f} samples/s"
    if facts["seconds_left"] is not None:
        words["time left"] = f"{_clock(facts['seconds_left'])} at this speed, without validations"
    validation = facts["validation"]
    if validation:
        measures = ("loss", "accuracy", "macro_f1", "weighted_f1")
        shown = "  ".join(f"{name} {validation[name]:.4f}" for name in measures)
        words["validation"] = f"after step {validation['step']}: {shown}"
    if facts["restarts"] is not None:
        words["restarts"] = str(facts["restarts"])
    if facts["queued"]:
        left = {facts["job"]: f", {facts['job_time_left']} left of its limit"}
        if not facts["job_time_left"]:
            left = {}
        words["jobs"] = "; ".join(
            f"{job} {state}{left.get(job, '')}"
            for job, state in sorted(facts["queued"].items(), key=lambda one: _number(one[0]))
        )
    words["log"] = facts["log"]
    return words


def _state_in_words(facts: Mapping[str, Any]) -> str:
    state, reason, age = facts["state"], facts["reason"], facts["seconds_since_word"]
    words = f"{state} ({reason})" if reason else str(state)
    if state is None:
        if "RUNNING" in facts["queued"].values():
            return "starting: its job runs, and has not said anything yet"
        return "not begun" if facts["queued"] else "not begun, and no job of it is queued"
    if state == "running":
        words += f", last word {_clock(age)} ago"
        if facts["job"] and not facts["queued"]:
            words += "; but SLURM has no job of it: it was ended without a word. Submit it again"
    elif state == "preempted":
        words += "; goes on" if facts["queued"] else "; the same command goes on with it"
    return words


def _number(job: str) -> tuple[int, ...]:
    return tuple(map(int, job.split("_")))


def _clock(seconds: int) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
