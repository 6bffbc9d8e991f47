"""Runs whose head sees tokens and patches, in one process: gradients, resuming, exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engines import SAME_EVERYWHERE
from harness import TINY, metric_lines
from PIL import Image
from safetensors.torch import load_file

import mmsa
from evaluate import main as evaluate_main
from mmsa.errors import EXIT_PREEMPTED
from train import main as train_main

HEADS = ("cross_attention", "bottleneck", "gated")


@pytest.mark.parametrize("head", HEADS)
def test_the_step_does_not_depend_on_accumulation(shards: Path, tmp_path: Path, head: str) -> None:
    """Texts of a smaller micro-batch are padded to another length: losses and gates stay."""
    lines = {}
    for micro_batch_size in (16, 4):
        settings = [*SAME_EVERYWHERE, f"data.shards={shards}", f"model.fusion.name={head}"]
        settings += [f"train.micro_batch_size={micro_batch_size}", "train.max_steps=3"]
        run_dir = tmp_path / str(micro_batch_size)
        assert train_main([*settings, f"run.dir={run_dir}"]) == 0
        lines[micro_batch_size] = metric_lines(run_dir, "train")
    compared = ["loss", "grad_norm", *(["fusion_image_gate"] if head == "gated" else [])]
    for name in compared:
        one, other = ([line[name] for line in lines[size]] for size in (16, 4))
        np.testing.assert_allclose(one, other, rtol=1e-4, err_msg=name)
    assert ("fusion_image_gate" in lines[4][0]) == (head == "gated")


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the bottleneck: stopped after a step and resumed."""
    place = tmp_path_factory.mktemp("bottleneck") / "run"
    settings = [*TINY, f"data.shards={shards}", "model.fusion.name=bottleneck", "train.epochs=1"]
    settings += ["model.fusion.width=8", "train.checkpoint_every_steps=5"]
    whole = [*settings, f"run.dir={place.parent / 'whole'}"]
    settings += [f"run.dir={place}"]
    assert train_main([*settings, "run.max_time=0.01"]) == EXIT_PREEMPTED
    assert train_main(settings) == 0
    assert train_main(whole) == 0
    return place


def test_a_resumed_run_has_the_bytes_of_a_whole_one(run_dir: Path) -> None:
    whole = run_dir.parent / "whole"
    assert "resumed from" in (run_dir / "log.txt").read_text()
    losses = [[line["loss"] for line in metric_lines(run, "train")] for run in (run_dir, whole)]
    assert losses[0] == losses[1]
    weights = [load_file(run / "best" / "model.safetensors") for run in (run_dir, whole)]
    assert weights[0]["fusion.shared"].shape == (4, 8)
    assert all(np.array_equal(weights[1][name], value) for name, value in weights[0].items())


def test_its_export_is_audited_and_predicts(run_dir: Path, tmp_path: Path) -> None:
    """A text next to a longer one has the probabilities that it has alone."""
    words = [str(run_dir), "--split", "val", "--out", str(tmp_path), "--no-page"]
    assert evaluate_main([*words, "--modality-audit", "--num-workers", "0"]) == 0
    audit = json.loads((tmp_path / "modality_audit.json").read_text())
    assert len(audit["changes"]) == 5
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    texts = ["a day", "a much longer text about one day in the life of others"]
    predictor = mmsa.load(run_dir)
    both = predictor.predict(texts, images).probabilities
    alone = [
        predictor.predict([text], [image]).probabilities[0]
        for text, image in zip(texts, images, strict=True)
    ]
    np.testing.assert_allclose(both, alone, rtol=1e-5)
