"""`train.compile` under DDP, whose buckets cut the compiled graphs, with packed texts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from engines import SAME_EVERYWHERE
from harness import launched, metric_lines
from safetensors.torch import load_file

from mmsa.data.packed_texts import PackedTexts, TextPacking
from train import main as train_main

# More than the 1 MiB of DDP's first bucket, so that there are two: the graph is cut between them.
SETTINGS = [
    *SAME_EVERYWHERE,
    "model.text_encoder.config={model_type: bert, hidden_size: 128, num_hidden_layers: 2, "
    "num_attention_heads: 2, intermediate_size: 512, max_position_embeddings: 64, "
    "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    *["train.micro_batch_size=4", "train.validate_every_steps=3"],
]


@pytest.mark.soak  # dynamo alone takes each rank half a minute
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("script", "recomputed"),
    [
        ("tests/end_to_end/compiled_quickly.py", False),
        ("tests/end_to_end/compiled_quickly.py", True),
        ("train.py", False),
    ],
)
def test_packed_texts_are_compiled_under_ddp(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, recomputed: bool
) -> None:
    """The losses and weights of one process without it, and graphs for two kinds of batches."""
    monkeypatch.setattr("harness.TIMEOUT_S", 1000)  # torch's code generator calls a C++ compiler
    kinds: list[bool] = []
    real = TextPacking.packed

    def noted(self: TextPacking, *texts: object) -> PackedTexts | None:
        found = real(self, *texts)  # type: ignore[arg-type]
        kinds.append(found is not None)
        return found

    monkeypatch.setattr(TextPacking, "packed", noted)
    settings = [*SETTINGS, f"data.shards={shards}"]
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert train_main([*settings, f"run.dir={alone}"]) == 0
    assert set(kinds) == {True, False}  # both are in these batches
    settings += [
        f"model.{encoder}.gradient_checkpointing={str(recomputed).lower()}"
        for encoder in ("text_encoder", "image_encoder")
    ]
    ended = launched(
        *[script, *settings, "train.compile=true", f"run.dir={run_dir}", "launch.engine=ddp"],
        config="launch/accelerate/ddp.yaml",
    )
    assert ended.returncode == 0, ended.stderr
    losses = [[line["loss"] for line in metric_lines(run, "train")] for run in (alone, run_dir)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    weights = [load_file(run / "best" / "model.safetensors") for run in (alone, run_dir)]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-4, atol=1e-6, err_msg=name)

    log = (run_dir / "log.txt").read_text()
    assert "texts: packed, under a mask" in log
    counts = re.findall(r"train.compile: (\d+) graph\(s\) compiled", log)
    # Of the text encoder padded, one row and several, with gradients and without; of the image
    # encoder with gradients and without.
    assert 4 <= sum(map(int, counts)) <= 8, counts
    assert "runs uncompiled" not in log
