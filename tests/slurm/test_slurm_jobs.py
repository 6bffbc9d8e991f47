"""Jobs on a real cluster: trained on two nodes, stopped in every way, chained, in arrays.

What a job ends with has the bytes of the same thing done on this machine without SLURM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from harness import launched, status
from slurm_jobs import (
    SHAPE,
    Job,
    assert_ended,
    jobs_of,
    newest_checkpoint,
    processes_of,
    ranks_of,
    submit,
    weights,
    write_config,
)

from evaluate import main as evaluate_main
from launch.__main__ import main as launch_main

pytestmark = pytest.mark.timeout(1800)

NUM_STEPS = 200  # a fast machine does 40 a second, and is stopped six times before the end
TRAINING = [
    *[f"train.max_steps={NUM_STEPS}", "train.epochs=99", "train.checkpoint_every_steps=20"],
    *["train.validate_every_steps=100", "train.keep_checkpoints=99", "data.num_workers=1"],
]
URGENT = (
    "#!/bin/bash\n#SBATCH --partition=urgent --nodes=3 --exclusive --output=/dev/null\nsleep 1\n"
)


@pytest.fixture(scope="module")
def config(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("slurm") / "run.yaml"
    return write_config(file, f"data.shards={packed}", *TRAINING)


@pytest.fixture(scope="module")
def local(cluster: Cluster, config: Path) -> Path:
    """The same run by two processes of this machine, without SLURM."""
    run_dir = config.parent / "local"
    done = launched("train.py", "--config", str(config), f"run.dir={run_dir}", processes=2)
    assert done.returncode == 0, done.stderr
    assert "engine ddp, world_size 2, backend gloo" in (run_dir / "log.txt").read_text()
    return run_dir


def stand(target: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What `python -m launch status` says."""
    capsys.readouterr()
    assert launch_main(["status", target, "--json"]) == 0
    content: dict[str, object] = json.loads(capsys.readouterr().out)
    return content


def test_two_nodes_and_a_chain(
    cluster: Cluster, config: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = config.parent / "chained"
    settings = [str(config), f"run.dir={run_dir}"]
    submit("train", "--chain", "train,evaluate", *SHAPE, "--", *settings)
    said = capsys.readouterr().out
    train, evaluate = jobs_of(run_dir / "slurm")
    assert f"submitted job {train}: train {run_dir} on 2 node(s) x 1 GPU(s), ddp" in said
    assert f"submitted job {evaluate}: evaluate {run_dir} on test, after job {train}" in said
    assert f"log     {run_dir}/slurm/train-{train}.log" in said
    assert f"python -m launch status {run_dir}" in said

    job = Job(cluster, train, run_dir)
    job.wait_for_steps()
    # A second one on the same run is refused while this one is there.
    assert launch_main(["submit", "train", *SHAPE, "--", *settings]) == 2
    assert f"job {train} of {run_dir} is RUNNING" in capsys.readouterr().err
    for target in (train, str(run_dir)):
        facts = stand(target, capsys)
        assert (facts["run"], facts["state"], facts["job"]) == (str(run_dir), "running", train)
        assert (facts["num_steps"], facts["restarts"]) == (NUM_STEPS, 0)
        assert facts["queued"] == {train: "RUNNING", evaluate: "PENDING (Dependency)"}
        assert 1 <= int(str(facts["step"])) <= NUM_STEPS
        assert facts["log"] == str(job.log_file)
    processes = processes_of(train)
    assert len([one for one in processes if "RANK" in one.environ()]) >= 2
    Job(cluster, evaluate, run_dir).wait_for_state("COMPLETED")
    assert_ended(processes)
    assert processes_of(train) + processes_of(evaluate) == []

    # Each node had its own name, rank and launcher, and the run its shape.
    assert re.search(r"2 node\(s\) \(node\[1-2\]\) x 1 process\(es\), ddp", job.log())
    assert "launch: engine ddp, world_size 2, backend gloo" in job.log()
    assert weights(run_dir) == weights(local)
    facts = stand(str(run_dir), capsys)
    assert (facts["state"], facts["step"], facts["queued"]) == ("done", NUM_STEPS, {})
    # The evaluation ran on two nodes too, and its report is that of one process here.
    assert evaluate_main([str(local)]) == 0
    reports = [run / "reports" / "test-best" / "metrics.json" for run in (run_dir, local)]
    assert reports[0].read_bytes() == reports[1].read_bytes()
    made_by = json.loads(reports[0].with_name("evaluation_run.json").read_text())
    assert made_by["world_size"] == 2

    assert launch_main(["submit", "train", *SHAPE, "--", *settings]) == 2
    assert f"{run_dir} is finished" in capsys.readouterr().err


@contextmanager
def standing_still_until_warned(job: Job) -> Iterator[None]:
    """The ranks make no step before SLURM's warning comes, however long that takes."""
    frozen, heard = ranks_of(job.number), job.log().count("SIGUSR1: ")
    for rank in frozen:
        rank.suspend()
    yield
    job.wait_until(lambda: job.log().count("SIGUSR1: ") > heard)
    for rank in frozen:  # some are workers of one that has just gone on, and end with it
        with suppress(psutil.NoSuchProcess):
            rank.resume()


def preempt(job: Job, tmp_path: Path) -> None:
    """A job of a higher partition asks for all nodes."""
    script = tmp_path / "urgent.sbatch"
    script.write_text(URGENT)
    with standing_still_until_warned(job):
        job.cluster.run("sbatch", str(script))


def end_ranks(job: Job, tmp_path: Path) -> None:
    """SIGTERM to the steps alone, as preemption does on clusters that do not warn the script."""
    job.cluster.run("scancel", "--signal=TERM", job.number)


def reach_time_limit(job: Job, tmp_path: Path) -> None:
    """The limit is near; SLURM looks every 30 s."""
    with standing_still_until_warned(job):
        job.cluster.run(
            "bash", "-c", f"scontrol update jobid={job.number} EndTime=$(date -d +90sec +%FT%T)"
        )
    job.wait_for_state("PENDING")
    job.cluster.run("scontrol", "update", f"jobid={job.number}", "TimeLimit=10")


STOPS: list[tuple[Callable[[Job, Path], None], str]] = [
    (preempt, "SIGUSR1"),
    (end_ranks, "SIGTERM"),
    (reach_time_limit, "SIGUSR1"),
]


def assert_started_again(job: Job, strike: Callable[[], None]) -> None:
    """Nothing is saved, nothing is left, and it goes on from its newest checkpoint."""
    job.wait_for_steps()
    processes, starts = processes_of(job.number), job.restarts()
    strike()
    job.wait_for_restart(starts + 1)
    # Now: on its next start the run writes more.
    told, newest = status(job.run_dir), newest_checkpoint(job.run_dir)
    assert_ended(processes)
    assert "lost contact with another rank" in told["reason"]
    job.wait_for_steps(1)
    assert f"resumed from {newest} at step" in job.own_log()


def test_stopped_in_every_way_and_started_again(
    cluster: Cluster, config: Path, local: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    submit("train", *SHAPE, "--", str(config), f"run.dir={run_dir}")
    (number,) = jobs_of(run_dir / "slurm")
    job = Job(cluster, number, run_dir)
    for restarts, (stop, by) in enumerate(STOPS, start=1):
        job.wait_for_steps()
        processes = processes_of(number)
        stop(job, tmp_path)
        job.wait_for_restart(restarts)
        # Saved where it was stopped, and the next start goes on there, and writes more.
        told, saved = status(run_dir), newest_checkpoint(run_dir)
        assert_ended(processes)
        assert (told["state"], told["exit_code"]) == ("preempted", 75), stop.__name__
        assert told["reason"].startswith(by)
        assert saved.name == f"step-{told['step']:08d}"
        assert f"requeueing (restart {restarts})" in job.log()
        job.wait_for_steps(1)
        assert f"resumed from {saved} at step {told['step']}" in job.own_log()

    assert_started_again(job, lambda: ranks_of(number)[1].kill())
    assert "failed at step" in job.log()
    # A node loses its power: the job goes on elsewhere.
    lost = cluster.run("scontrol", "show", "hostnames", job.facts()["NodeList"]).split()[1]
    assert_started_again(job, lambda: cluster.power_off(lost))
    assert lost not in cluster.run("scontrol", "show", "hostnames", job.facts()["NodeList"])
    cluster.power_on(lost)

    # Cancelled by its user: saved, and not started again until its user says so.
    job.wait_for_steps()
    processes = processes_of(number)
    cluster.run("scancel", number)
    job.wait_for_state("CANCELLED")
    assert_ended(processes)
    assert status(run_dir)["state"] == "preempted"
    submit("train", *SHAPE, "--", str(config), f"run.dir={run_dir}")
    last = Job(cluster, jobs_of(run_dir / "slurm")[-1], run_dir)
    assert last.number != number
    last.wait_for_state("COMPLETED")
    assert job.state() == "CANCELLED"

    assert status(run_dir)["state"] == "done"
    assert weights(run_dir) == weights(local)
    assert job.log().count(f"job {number}, restart ") == 6  # appended, each start
    assert processes_of(number) + processes_of(last.number) == []
