"""One run in launches of four, two and one process: the audit proves what they read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import end_group, keys_by_step, start_launch
from small_set import IMAGES_ONLY, small_set, wait_for_checkpoint

from mmsa.data.audit import main as audit_main
from mmsa.data.audit_files import parts_of
from train import main as train_main


def test_a_run_killed_twice_on_other_worlds_reads_what_an_uninterrupted_one_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = small_set(tmp_path / "shards")
    settings = [*IMAGES_ONLY, f"data.shards={shards}", "run.audit=true", "data.drop_last=false"]
    settings += ["data.groups=2"]
    settings += ["train.epochs=15", "train.checkpoint_every_steps=3"]
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    begun = []
    for world_size, micro, workers in ((4, 4, 1), (2, 2, 2)):
        launch = start_launch(
            "train.py",
            *[*settings, f"run.dir={run_dir}", f"launch.world_size={world_size}"],
            *[f"train.micro_batch_size={micro}", f"data.num_workers={workers}"],
            processes=world_size,
        )
        begun.append(newest_step(run_dir))
        wait_for_checkpoint(run_dir, begun[-1] + 3, launch)
        end_group(launch)
        assert audit_main([str(run_dir)]) == 0  # also of a run that was killed just now
    begun.append(newest_step(run_dir))
    last = [f"run.dir={run_dir}", "train.micro_batch_size=16", "data.num_workers=0"]
    assert train_main([*settings, *last]) == 0
    assert "world_size 4, backend gloo" in (run_dir / "log.txt").read_text()
    uninterrupted = [f"run.dir={whole}", "data.num_workers=0", "train.checkpoint_every_steps=60"]
    assert train_main([*settings, *uninterrupted]) == 0

    capsys.readouterr()
    assert audit_main([str(run_dir)]) == 0
    told = capsys.readouterr().out
    worlds = [4, 2, 1]
    for start_step, world_size in zip(begun, worlds, strict=True):
        assert f"launch from step {start_step}: {world_size} rank(s)" in told
    assert "960 samples read in 60 steps" in told
    assert [part.world_size for part in parts_of(run_dir)] == [4] * 4 + [2] * 2 + [1]
    assert keys_by_step(run_dir) == keys_by_step(whole)


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, or 0."""
    states = run_dir.glob("checkpoints/step-*/state.json")
    return max((json.loads(path.read_text())["step"] for path in states), default=0)
