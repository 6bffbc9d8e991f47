"""A run resumed at other world sizes and under other engines: the same losses, the same data.

One uninterrupted run of one process is the reference. Each engine resumes its checkpoint of step 3
with two processes; their checkpoint of step 6 is resumed with four processes of that engine, and
the one of step 9 in one process without an engine. ZeRO-3 also resumes in one process.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from engines import SAME_EVERYWHERE, launch_file
from harness import keys_by_step, launched, metric_lines, status
from safetensors.torch import load_file

from train import main as train_main

LAST_STEP = 12
EXACT = [
    *[*SAME_EVERYWHERE, f"train.max_steps={LAST_STEP}", "train.checkpoint_every_steps=3"],
    *["train.keep_checkpoints=20", "train.validate_every_steps=100", "run.audit=true"],
]
TOLERANCE = {"ddp": 1e-5, "zero1": 1e-5, "zero2": 1e-5, "zero3": 1e-3}


def stopped_at(run_dir: Path, step: int, copy: Path) -> Path:
    """A copy of a run, as if it had been killed after its checkpoint of `step`."""
    shutil.copytree(run_dir, copy, symlinks=True)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    for name in ("status.json", "log.txt"):
        (copy / name).unlink()
    return copy


def losses(run_dir: Path) -> list[float]:
    lines = metric_lines(run_dir, "train")
    assert [line["step"] for line in lines] == list(range(1, LAST_STEP + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("elastic") / "whole"
    assert train_main([*EXACT, f"data.shards={shards}", f"run.dir={run_dir}"]) == 0
    return run_dir


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_a_run_resumes_at_other_world_sizes_and_under_another_engine(
    engine: str, whole: Path, shards: Path, tmp_path: Path
) -> None:
    def resume(before: Path, step: int, worlds: tuple[int, int]) -> Path:
        """Resume a run stopped at `step`; `worlds`: (size that wrote the checkpoint, new size)."""
        run_dir = stopped_at(before, step, tmp_path / f"{worlds[0]}-to-{worlds[1]}")
        settings = [*EXACT, f"data.shards={shards}", f"run.dir={run_dir}"]
        settings += [f"launch.engine={engine}", f"launch.world_size={worlds[1]}"]
        settings += ["train.micro_batch_size=2"] if worlds[1] == 4 else []
        ended = launched("train.py", *settings, processes=worlds[1], config=file)
        assert ended.returncode == 0, ended.stderr
        log = (run_dir / "log.txt").read_text()
        assert f"engine {engine}, world_size {worlds[1]}, " in log
        assert f"step-{step:08d} at step {step}\n" in log
        assert f"was written by {worlds[0]} process(es), this launch has {worlds[1]}" in log
        assert ("was written under single" in log) == (before == whole)
        np.testing.assert_allclose(losses(run_dir), losses(whole), rtol=TOLERANCE[engine])
        return run_dir

    file = launch_file(engine, tmp_path)
    two = resume(whole, 3, (1, 2))
    four = resume(two, 6, (2, 4))
    if engine == "zero3":
        resume(two, 6, (2, 1))
    last = stopped_at(four if engine == "zero3" else two, 9, tmp_path / "alone")
    assert train_main([*EXACT, f"data.shards={shards}", f"run.dir={last}"]) == 0
    assert f"was written under {engine}, this launch is single" in (last / "log.txt").read_text()
    np.testing.assert_allclose(losses(last), losses(whole), rtol=TOLERANCE[engine])
    assert status(last)["state"] == "done"
    assert keys_by_step(last) == keys_by_step(whole)
    weights = [load_file(run / "best" / "model.safetensors") for run in (whole, last)]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
