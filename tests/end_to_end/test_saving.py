"""What a save writes to the run directory, and that it does not change the run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import train
from full_disk import files_of_at_most, fill
from harness import TIMEOUT_S, TINY, end_group, start_launch, status, wait_for

from mmsa.checkpoint_folders import is_whole
from mmsa.training.checkpoints.intact import damage_of
from train import main as train_main

# Dropout, augmentation and BatchNorm in training mode, as by default.
SHORT = [*TINY, "train.max_steps=5", "train.validate_every_steps=100", "train.keep_checkpoints=1"]


@pytest.mark.parametrize(
    ("engine", "world_size"),
    [("single", 1), pytest.param("zero2", 2, marks=pytest.mark.soak), ("zero3", 2)],
)
def test_saving_at_every_step_changes_no_bit(
    engine: str, world_size: int, shards: Path, tmp_path: Path
) -> None:
    """Nor do saves in the background, which end with the bytes of one that training waits for."""
    written = []
    for name, every in (("often", 1), ("once", 100)):
        settings = [*SHORT, f"data.shards={shards}", f"train.checkpoint_every_steps={every}"]
        settings.append(f"train.checkpoint_in_background={str(name == 'often').lower()}")
        if engine == "single":
            assert train_main([*settings, f"run.dir={tmp_path / name}"]) == 0
        else:
            train(tmp_path / name, engine, world_size, *settings)
        written.append(tmp_path / name / "checkpoints" / "step-00000005")
        assert damage_of(written[-1]) == []  # each rank's digests are of the files that are there
        assert list((tmp_path / name).rglob("*.tmp")) == []  # though old checkpoints were removed
    names = sorted(str(path.relative_to(written[0])) for path in written[0].rglob("*.safetensors"))
    assert names == [
        *["export/model.safetensors", "optimizer.safetensors"],
        *[f"statistics-{rank:05d}.safetensors" for rank in range(world_size)],
    ]
    for name in names:
        assert (written[0] / name).read_bytes() == (written[1] / name).read_bytes(), name


def test_a_background_write_that_fails_ends_the_run_as_any_other(
    shards: Path, tmp_path: Path
) -> None:
    """At the next save, or at the end; the checkpoint before stays, and the run resumes from it."""
    run_dir = tmp_path / "run"
    settings = [*SHORT, f"data.shards={shards}", f"run.dir={run_dir}"]
    settings += ["train.checkpoint_in_background=true", "train.checkpoint_every_steps=1"]
    again = [*settings, "train.max_steps=3", "train.epochs=9"]
    too_little = 200_000  # bytes of a file: enough for the weights, not for the optimizer's state
    for failing_at, every in ((1, 1), (3, 3)):
        with files_of_at_most(too_little):
            assert train_main([*again, f"train.checkpoint_every_steps={every}"]) == 2
        told = status(run_dir)
        assert (told["state"], told["exit_code"]) == ("failed", 2)
        assert told["reason"].startswith(
            f"the checkpoint of step {failing_at} could not be written"
        )
        assert list((run_dir / "checkpoints").glob("*step-*")) == []
    assert train_main(again) == 0
    assert damage_of(run_dir / "checkpoints" / "step-00000003") == []


def test_each_checkpoint_has_the_best_that_it_refers_to(shards: Path, tmp_path: Path) -> None:
    """A run that dies between a new best export and a checkpoint resumes with the previous best."""
    settings = [*TINY, f"data.shards={shards}", "train.max_steps=8", "train.keep_checkpoints=9"]
    settings += ["train.validate_every_steps=1", "train.checkpoint_every_steps=4"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train_main([*settings, f"run.dir={whole}"]) == 0
    best_steps = []
    for checkpoint in sorted((whole / "checkpoints").glob("step-*")):
        state = json.loads((checkpoint / "state.json").read_text())
        best_steps.append(state["best_step"])
        assert (whole / "exports" / f"step-{best_steps[-1]:08d}" / "export.json").is_file()
    assert len(list((whole / "exports").iterdir())) == len(set(best_steps))
    # Killed after step 7: `best` is ahead of the checkpoint of step 4.
    shutil.copytree(whole, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    (again / "status.json").unlink()
    ahead = shutil.copytree(again / "best", again / "exports" / "step-00000007")
    (again / "best").unlink()
    (again / "best").symlink_to(ahead.relative_to(again))
    assert train_main([*settings, f"run.dir={again}", "train.checkpoint_every_steps=100"]) == 0
    assert os.readlink(again / "best") == os.readlink(whole / "best")
    for name in ("model.safetensors", "export.json"):
        assert (again / "best" / name).read_bytes() == (whole / "best" / name).read_bytes()
    kept = {path.name for path in (again / "exports").iterdir()}
    assert kept == {f"step-{step:08d}" for step in best_steps}


def test_a_second_launch_on_a_run_directory_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=500"]
    first = start_launch("train.py", *settings, processes=1)
    try:
        wait_for(run_dir / "metrics.jsonl", first)
        before = status(run_dir)
        assert train_main(settings) == 2
        told = capsys.readouterr().err
        who = f"process {before['pid']} on {before['host']} since "
        assert f"error: {run_dir} is being trained by another launch ({who}" in told
        assert status(run_dir)["pid"] == before["pid"]  # still the first launch's status
        assert status(run_dir)["state"] == "running"
        assert "being trained" not in (run_dir / "log.txt").read_text()
    finally:
        end_group(first)


def test_a_full_disk_ends_a_run_that_resumes_when_there_is_space(
    shards: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("24m")
    run_dir = disk / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=3"]
    settings += ["train.checkpoint_every_steps=2", "train.validate_every_steps=100"]
    settings += ["train.keep_checkpoints=1"]
    launch = start_launch("train.py", *settings)
    wait_for(run_dir / "checkpoints" / "step-00000002" / "COMPLETE", launch)
    filler = fill(disk, leave_bytes=100_000)  # a checkpoint takes four times as much
    _, stderr = launch.communicate(timeout=TIMEOUT_S)
    assert launch.returncode == 1  # the launcher's exit code
    told = status(run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert "could not be written" in told["reason"]
    assert "No space left on device" in told["reason"]
    assert f"Free some space in {run_dir} and repeat the command" in told["reason"]
    assert stderr.count("error: the checkpoint of step") == 1  # one message for two ranks
    (good,) = (run_dir / "checkpoints").glob("*step-*")
    assert is_whole(good)
    assert int(good.name[5:]) == told["step"] - 2
    # On the full disk the run is refused before its first step; with space it resumes.
    assert train_main(settings) == 2
    assert "free and the run needs" in status(run_dir)["reason"]
    filler.unlink()
    assert train_main([*settings, "train.checkpoint_every_steps=100"]) == 0
    assert f"resumed from {good} at step {told['step'] - 2}" in (run_dir / "log.txt").read_text()
    assert status(run_dir)["state"] == "done"
