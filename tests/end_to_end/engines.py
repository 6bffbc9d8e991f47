"""Training under each engine through the project's own launch files."""

from __future__ import annotations

import json
from pathlib import Path

from harness import ROOT, TINY, launched

# float32, no dropout, frozen statistics. Adam normalises by a gradient's size: an eps of 1e-4 keeps
# gradients that are zero up to rounding (a key's bias in attention) from becoming full steps. With
# auxiliary heads, rates by layer and the average of the weights, which every engine must have.
SAME_EVERYWHERE = [
    *[*TINY, "train.max_steps=6", "optim.eps=1e-4", "model.fusion.dropout=0.0"],
    "model.text_encoder.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64, "
    "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    "model.image_encoder.batch_norm=frozen",
    *["model.auxiliary={text: 0.3, image: 0.2}", "optim.layer_decay=0.7", "train.ema=0.8"],
]


def launch_file(engine: str, directory: Path) -> str:
    """The launch file of an engine; for ZeRO-3 with a threshold low enough for so small a model."""
    if engine not in ("zero0", "zero3"):
        return f"launch/accelerate/{engine}.yaml"
    stage = 3 if engine == "zero3" else 0
    content = json.loads((ROOT / "launch/deepspeed/zero3.json").read_text())
    content["zero_optimization"] = {"stage": stage}
    if stage == 3:
        content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    settings = directory / f"{engine}.json"
    settings.write_text(json.dumps(content))
    launch = (ROOT / "launch/accelerate/zero3.yaml").read_text()
    file = directory / f"{engine}.yaml"
    file.write_text(launch.replace("launch/deepspeed/zero3.json", str(settings)))
    return str(file)


def train(run_dir: Path, engine: str, world_size: int, *settings: str) -> Path:
    """Train under an engine and assert that it was this engine, with all its ranks."""
    ended = launched(
        "train.py",
        *[*settings, f"run.dir={run_dir}", f"launch.world_size={world_size}"],
        # zero0 is only for comparison, not a value of `launch.engine`.
        *([] if engine == "zero0" else [f"launch.engine={engine}"]),
        processes=world_size,
        config=launch_file(engine, run_dir.parent),
    )
    assert ended.returncode == 0, ended.stderr
    log = (run_dir / "log.txt").read_text()
    assert f"launch: engine {engine}, world_size {world_size}, backend gloo, device cpu" in log
    return run_dir
