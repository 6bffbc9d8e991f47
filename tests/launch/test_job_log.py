"""What a job knows of its starts: whether they have made new checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from launch import job_log


def saved(run_dir: Path, step: int, *, at_s: int) -> Path:
    """A whole checkpoint as far as its list says, completed at a time."""
    checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (checkpoint / "COMPLETE").write_text('{"state.json": 2}')
    os.utime(checkpoint / "COMPLETE", (at_s, at_s))
    return checkpoint


def start(run_dir: Path) -> job_log.Facts:
    return {
        "checkpoint": job_log.newest_checkpoint_step(run_dir),
        "saved_ns": job_log.last_save_ns(run_dir),
    }


def test_starts_without_a_new_checkpoint_are_counted(tmp_path: Path) -> None:
    starts = [start(tmp_path)]
    assert job_log.without_checkpoint(starts, tmp_path) == 1
    saved(tmp_path, 20, at_s=100)
    assert job_log.without_checkpoint(starts, tmp_path) == 0
    starts += [start(tmp_path), start(tmp_path)]
    assert job_log.without_checkpoint(starts, tmp_path) == 2
    assert job_log.without_checkpoint([{"checkpoint": 20}], tmp_path) == 1  # of an early version


def test_an_earlier_step_than_that_of_a_damaged_checkpoint_is_new(tmp_path: Path) -> None:
    damaged = saved(tmp_path, 60, at_s=100)
    starts = [start(tmp_path)]
    damaged.rename(damaged.with_name(f"damaged-{damaged.name}"))  # the run passes over it
    saved(tmp_path, 50, at_s=200)
    assert job_log.newest_checkpoint_step(tmp_path) == 50
    assert job_log.without_checkpoint(starts, tmp_path) == 0
