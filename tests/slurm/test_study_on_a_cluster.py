"""A search by an array of drivers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from cluster import Cluster
from harness import TINY
from slurm_jobs import COMES_WITHIN_S, Job, assert_ended, jobs_of, processes_of

from launch.__main__ import main as launch_main

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]  # seven starts of torch
SETTINGS = [*TINY, "train.max_steps=2", "train.validate_every_steps=1"]


def test_a_killed_driver_of_an_array_loses_nothing(
    cluster: Cluster, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run: {log_every_steps: 1}\n")
    space = {"optim.text_lr": {"float": [1e-4, 1e-2], "log": True}}
    file = tmp_path / "search.yaml"
    search = {"trials": 3, "space": space, "pruner": "asha"}
    file.write_text(yaml.safe_dump({"base": str(base), "settings": SETTINGS, "search": search}))
    out = tmp_path / "out"
    words = ["study", str(file), "--out", str(out)]
    rest = ["--", f"data.shards={packed}"]
    job = ["--slurm", "--parallel", "2", "--cpus-per-task", "1", "--time", "60"]
    assert launch_main([*words, *job, *rest]) == 0
    assert f"2 task(s) for {out}, each on 1 node(s) x 1 CPU process(es)" in capsys.readouterr().out
    (array,) = jobs_of(out / "slurm")
    assert launch_main([*words, *job, *rest]) == 0  # not a second one
    assert f"nothing was submitted: job {array}" in capsys.readouterr().out

    cluster.wait_until(lambda: list(out.glob("search/*/run/config.yaml")), COMES_WITHIN_S)
    trial = next(out.glob("search/*/run/config.yaml")).parent
    train = next(one for one in drivers_and_runs() if f"run.dir={trial}" in one.cmdline())
    driver = train.parent()
    assert driver is not None
    killed = driver.environ()["SLURM_ARRAY_TASK_ID"]
    os.kill(driver.pid, signal.SIGKILL)

    for task in ("1", "2"):
        Job(cluster, f"{array}_{task}", out).wait_for_state("COMPLETED")
    assert Job(cluster, f"{array}_{killed}", out).restarts() == 1
    results = [json.loads(path.read_text()) for path in sorted(out.glob("search/*/result.json"))]
    assert len(results) == 3
    assert {one["state"] for one in results} <= {"complete", "pruned"}
    assert "complete" in {one["state"] for one in results}
    assert launch_main([*words, "--status", *rest]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 trials have ended" in said
    assert (out / "study.html").exists()
    assert (out / "best.yaml").exists()
    assert_ended(processes_of(array))


def drivers_and_runs() -> list[psutil.Process]:
    """The processes of this machine whose command line can be read."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found
