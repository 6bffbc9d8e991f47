"""A job of the test cluster that is watched: where its run stands, its processes, how it ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import psutil
from cluster import Cluster
from harness import TINY

from launch import slurm_queue
from launch.__main__ import main as launch_main
from mmsa.config import load_config

COMES_WITHIN_S = 300.0  # for what must come; nothing here is fast because of it
PACKING = ["--image-short-side", "64", "--ratios", "6:2:2"]
SHAPE = ["--nodes", "2", "--gpus-per-node", "1", "--cpus-per-task", "1", "--mem", "500M"]
SHAPE += ["--time", "10"]
ZERO = ["--nodes", "2", "--cpu-processes", "1", "--cpus-per-task", "1", "--engine", "zero2"]
ON_CPUS = ["--nodes", "1", "--cpu-processes", "2", "--cpus-per-task", "2", "--time", "10"]


def write_config(file: Path, *settings: str) -> Path:
    """The tiny model of the end-to-end tests as a configuration file."""
    file.write_text(load_config(None, [*TINY, *settings]).to_yaml())
    return file


def submit(*words: str) -> None:
    assert launch_main(["submit", *words]) == 0


def jobs_of(folder: Path) -> list[str]:
    """The numbers of the jobs that were submitted for a run, oldest first."""
    lines = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(line["job"] for line in lines))


def processes_of(job: str) -> list[psutil.Process]:
    """Every process on this machine that has the job's number in its environment, without those
    of another cluster, which may have a job of this number."""
    found = []
    ours = os.environ.get("SLURM_CONF")
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            same_cluster = environment.get("SLURM_CONF", ours) == ours
            if environment.get("SLURM_JOB_ID") == job and same_cluster:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_of(job: str) -> list[psutil.Process]:
    return [one for one in processes_of(job) if "RANK" in one.environ()]


def assert_ended(processes: list[psutil.Process]) -> None:
    """No orphan: each of these processes ends, and soon."""
    left = psutil.wait_procs(processes, timeout=30)[1]
    left = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert left == []


class Job:
    """A training job on a run directory."""

    def __init__(self, cluster: Cluster, number: str, run_dir: Path) -> None:
        self.cluster, self.number, self.run_dir = cluster, number, run_dir
        self.log_file = run_dir / "slurm" / f"train-{number}.log"

    def facts(self) -> dict[str, str]:
        return slurm_queue.facts(self.number)

    def state(self) -> str:
        return self.facts()["JobState"]

    def restarts(self) -> int:
        return int(self.facts()["Restarts"])

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def own_log(self) -> str:
        """What the newest start has written."""
        _, begun, own = self.log().rpartition(f"job {self.number}, restart {self.restarts()}: ")
        return own if begun else ""

    def steps_of_this_start(self) -> list[int]:
        return [int(step) for step in re.findall(r"^step (\d+)/", self.own_log(), re.M)]

    def wait_until(self, true: Callable[[], object]) -> None:
        try:
            self.cluster.wait_until(true, COMES_WITHIN_S)
        except AssertionError as error:
            raise AssertionError(f"{self.facts()}\n{self.log()}\n{error}") from None

    def wait_for_steps(self, number: int = 3) -> None:
        self.wait_until(lambda: len(self.steps_of_this_start()) >= number)

    def wait_for_state(self, *states: str) -> None:
        self.wait_until(lambda: self.state() in states)

    def wait_for_restart(self, restarts: int) -> None:
        self.wait_until(lambda: self.restarts() == restarts)


def newest_checkpoint(run_dir: Path) -> Path:
    """The newest whole one."""
    return max(path.parent for path in run_dir.glob("checkpoints/step-*/COMPLETE"))


def weights(run_dir: Path) -> bytes:
    return (newest_checkpoint(run_dir) / "export" / "model.safetensors").read_bytes()
