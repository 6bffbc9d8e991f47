"""Arrays of jobs: packing by parts, runs of several seeds; and jobs that fail by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster import Cluster
from harness import status
from slurm_jobs import (
    ON_CPUS,
    PACKING,
    ZERO,
    Job,
    assert_ended,
    jobs_of,
    processes_of,
    submit,
    write_config,
)

from launch.__main__ import main as launch_main
from mmsa.config import load_config

pytestmark = pytest.mark.timeout(900)

ENDLESS = ["train.max_steps=100000", "train.epochs=99999", "train.checkpoint_every_steps=20"]


def test_packed_by_an_array(cluster: Cluster, raw: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    work = ["--cpus-per-task", "1", "--time", "10"]
    submit("pack", "--parts", "3", *work, "--", "mvsa-single", str(raw), str(out), *PACKING)
    folder = tmp_path / "shards.slurm"
    parts, merge = jobs_of(folder)
    Job(cluster, merge, tmp_path).wait_for_state("COMPLETED")
    names = sorted(path.name for path in packed.glob("*.tar"))
    assert names == sorted(path.name for path in out.glob("*.tar"))
    assert [(out / name).read_bytes() for name in names] == [
        (packed / name).read_bytes() for name in names
    ]
    assert len(list(folder.glob(f"pack-{parts}_[123].log"))) == 3
    assert list(tmp_path.glob("shards.part-*")) == []
    assert processes_of(merge) == []


def test_seeds_by_an_array(
    cluster: Cluster, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "ru n's %j $HOME"  # a name that bash and sbatch must take as it is
    config = write_config(
        tmp_path / "run.yaml", f"data.shards={packed}", f"run.dir={base}", "train.max_steps=2"
    )
    submit("seeds", "--seeds", "7,3", *ZERO, "--time", "10", "--", str(config))
    assert (
        f"train 2 runs in {base}, each on 2 node(s) x 1 CPU process(es)" in capsys.readouterr().out
    )
    # The same by hand, with the script as it is: two processes on a node, under DDP.
    by_hand = ["--array=5", "--cpus-per-task=2", f"--output={tmp_path}/by-hand.log"]
    by_hand += ["--export=ALL,CPU_PROCESSES=2"]
    script = ["launch/slurm/seeds.sbatch", "--config", str(config)]
    number = cluster.run("sbatch", "--parsable", *by_hand, *script).strip()
    (array,) = jobs_of(base / "slurm")
    for task, seed in enumerate((7, 3), start=1):
        run_dir = base / f"seed-{seed}"
        job = Job(cluster, f"{array}_{task}", run_dir)
        job.wait_for_state("COMPLETED")
        assert status(run_dir)["state"] == "done"
        assert load_config(str(run_dir / "config.yaml")).run.seed == seed
        assert launch_main(["status", str(run_dir)]) == 0
        said = capsys.readouterr().out
        assert "state       done\nstep        2 of 2\n" in said
        assert f"log         {base}/slurm/seeds-{array}_{task}.log" in said
        log = Path(said.partition("\nlog         ")[2].strip()).read_text()
        assert "launch: engine zero2, world_size 2, backend gloo" in log
        assert "1 thread(s) each" in log
    # All of the array at a glance, and one of its tasks by the job's number.
    assert launch_main(["status", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"in {base}:"
    assert [line.split()[:3] for line in lines[3:]] == [
        [f"seed-{seed}", "done", "2/2"] for seed in (7, 3)
    ]
    assert launch_main(["status", f"{array}_2"]) == 0
    assert f"run         {base}/seed-3\n" in capsys.readouterr().out
    Job(cluster, f"{number}_5", base).wait_for_state("COMPLETED")
    assert status(base / "seed-5")["state"] == "done"
    assert load_config(str(base / "seed-5" / "config.yaml")).run.seed == 5
    by_hand_log = (tmp_path / "by-hand.log").read_text()
    assert "launch: engine ddp, world_size 2, backend gloo" in by_hand_log
    assert "1 node(s)" in by_hand_log
    assert processes_of(number) + processes_of(array) == []


def test_a_task_is_requeued_without_the_others(
    cluster: Cluster, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "runs"
    config = write_config(
        tmp_path / "run.yaml", f"data.shards={packed}", f"run.dir={base}", *ENDLESS
    )
    submit("seeds", "--seeds", "7,3", *ON_CPUS, "--", str(config))
    (array,) = jobs_of(base / "slurm")
    other, last = (
        Job(cluster, f"{array}_{task}", base / f"seed-{seed}") for task, seed in ((1, 7), (2, 3))
    )
    for job in (other, last):
        job.log_file = base / "slurm" / f"seeds-{job.number}.log"
        job.wait_until(lambda run=job.run_dir: list(run.glob("checkpoints/*/COMPLETE")))
    # SLURM gives the number of the array to the task that it creates last.
    assert last.facts()["JobId"] == array != other.facts()["JobId"]

    def warn(job: Job) -> None:
        cluster.run("scancel", "--signal=USR1", "--batch", job.number)

    warn(last)
    last.wait_for_restart(1)
    assert "not requeueing" not in last.log()
    assert (other.state(), other.restarts()) == ("RUNNING", 0)
    last.wait_for_state("RUNNING")
    last.wait_until(lambda: f"job {array}, restart 1: " in last.log())
    # As a time limit warns them: one after the other, and the first is in the queue again.
    warn(other)
    other.wait_for_restart(1)
    last.wait_until(lambda: "resumed from" in last.log())
    warn(last)
    last.wait_for_restart(2)
    assert "not requeueing" not in last.log()
    for job in (other, last):  # each by itself
        capsys.readouterr()
        assert launch_main(["status", str(job.run_dir), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["job"], list(facts["queued"])) == (job.number, [job.number])
        assert launch_main(["status", job.facts()["JobId"], "--json"]) == 0
    cluster.run("scancel", array)
    for job in (other, last):
        job.wait_for_state("CANCELLED")


def test_a_fault_of_its_own_is_not_requeued_for_ever(
    cluster: Cluster, packed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", f"data.shards={packed}", "train.max_steps=2")
    # Nothing that starts: tried again as often as the site allows, under the same number.
    site = tmp_path / "site.yaml"
    site.write_text("container: 'false'\nmax_retries: 1\n")
    never = tmp_path / "never"
    submit("train", "--site", str(site), *ON_CPUS, "--", str(config), f"run.dir={never}")
    # Something that its user has to mend: not once more.
    wrong = tmp_path / "wrong"
    settings = [f"run.dir={wrong}", "model.image_encoder.batch_norm=sync"]
    submit("train", "--chain", "train,evaluate", *ON_CPUS, "--", str(config), *settings)
    for run_dir, restarts, words in (
        (never, 1, "giving up after 2 starts in a row without a new checkpoint (MAX_RETRIES=1)"),
        (wrong, 0, "a restart cannot fix: model.image_encoder.batch_norm=sync needs GPUs"),
    ):
        job = Job(cluster, jobs_of(run_dir / "slurm")[0], run_dir)
        job.wait_for_state("FAILED")
        assert job.restarts() == restarts
        assert words in job.log()
        assert_ended(processes_of(job.number))
    assert (status(wrong)["state"], status(wrong)["exit_code"]) == ("failed", 2)
    # What was to come behind it does not wait for ever.
    Job(cluster, jobs_of(wrong / "slurm")[1], wrong).wait_for_state("CANCELLED")


def test_refused_by_slurm(
    cluster: Cluster, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cluster.run("squeue", "-h")
    config = write_config(tmp_path / "run.yaml", f"data.shards={packed}")
    for options, words in (
        (["--partition", "gpus"], "SLURM has no partition 'gpus'; it has: main, urgent"),
        (["--cpus-per-task", "4", "--nodes", "4"], "partition 'main' has 3 node(s) with at most"),
        (["--partition", "main,urgent"], "requests 1 node(s) with 8 CPU(s) each"),  # the script's
        (["--cpus-per-task", "4", "--gpus-per-node", "4"], "at most 4 CPU(s) and 2 GPU(s) each"),
        (["--cpus-per-task", "4", "--sbatch", "constraint=h100"], "SLURM's `sbatch` failed: "),
    ):
        run = [*options, "--", str(config), f"run.dir={tmp_path / 'run'}"]
        assert launch_main(["submit", "train", *run]) == 2
        assert words in capsys.readouterr().err
    assert cluster.run("squeue", "-h") == before == ""
