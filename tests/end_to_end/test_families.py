"""Every family of encoders, under every engine: trains in bf16 with recomputed layers, resumes to
the byte, exports and is evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from engines import train
from families import EVERYTHING, FAMILIES
from harness import TINY, metric_lines, status

from evaluate import main as evaluate_main
from mmsa.data.manifest import load_manifest
from train import main as train_main

# What the other tests of this folder train anyway, or what is like another one here.
_QUICK = ("timm efficientnet", "clip")
_SINGLE = [
    pytest.param(family, marks=() if family in _QUICK else pytest.mark.soak) for family in FAMILIES
]

# The families that have a text encoder of their own replace its configuration, and have none.
_WITHOUT_DROPOUT = [
    "model.fusion.dropout=0",
    "model.text_encoder.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64, "
    "hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}",
]
_FILES = ("export/model.safetensors", "optimizer.safetensors")


def _check(run_dir: Path, shards: Path, again: Callable[[], None]) -> None:
    """The run in `run_dir` is sound, and `again` repeats its end from the middle to the byte."""
    losses = [line["loss"] for line in metric_lines(run_dir, "train")]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    last = run_dir / "checkpoints" / "step-00000004"
    before = {name: (last / name).read_bytes() for name in _FILES}
    # As if the run had been killed while it wrote the last checkpoint.
    shutil.rmtree(last)
    told = status(run_dir) | {"state": "running", "step": 3, "exit_code": None}
    (run_dir / "status.json").write_text(json.dumps(told))
    again()
    assert "resumed from" in (run_dir / "log.txt").read_text()
    for name, content in before.items():
        assert (last / name).read_bytes() == content, name
    report = run_dir / "report"
    # As in a new process: evaluation has another precision than the training.
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["--split", "val", "--checkpoint", "4", "--no-page", "--num-workers", "0"]
    assert evaluate_main([str(run_dir), *words, "--out", str(report)]) == 0
    samples = json.loads((report / "metrics.json").read_text())["num_samples"]
    assert samples == load_manifest(shards).split("val").num_samples


@pytest.mark.parametrize("family", _SINGLE)
def test_each_family_in_one_process(shards: Path, tmp_path: Path, family: str) -> None:
    settings = [*TINY, *FAMILIES[family], *EVERYTHING, f"data.shards={shards}"]
    settings.append(f"run.dir={tmp_path / 'run'}")
    assert train_main(settings) == 0

    def again() -> None:
        assert train_main(settings) == 0

    _check(tmp_path / "run", shards, again)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_under_each_engine(
    shards: Path, tmp_path: Path, family: str, engine: str
) -> None:
    settings = [*TINY, *FAMILIES[family], *EVERYTHING, f"data.shards={shards}"]

    def launch() -> None:
        train(tmp_path / "run", engine, 2, *settings)

    launch()
    _check(tmp_path / "run", shards, launch)


@pytest.mark.soak
@pytest.mark.timeout(1200)  # a C++ compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_compiled(shards: Path, tmp_path: Path, family: str) -> None:
    """The first losses are those of the same run without compilation. Without dropout, which
    compiled code draws in another way."""
    settings = [*TINY, *_WITHOUT_DROPOUT, *FAMILIES[family], f"data.shards={shards}"]
    settings.append("train.max_steps=2")
    found = []
    for compiled in ("true", "false"):
        run_dir = tmp_path / compiled
        assert train_main([*settings, f"train.compile={compiled}", f"run.dir={run_dir}"]) == 0
        found.append([line["loss"] for line in metric_lines(run_dir, "train")])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3)
