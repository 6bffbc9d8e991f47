"""Shared by the benchmarks: packed data, the real run of train.py, FLOPs, clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

SIZES = {  # the two encoders' own sizes, written out: nothing is downloaded
    "large": {
        "text": "{model_type: bert}",  # the defaults of BertConfig are BERT-base
        "image": ["model.image_encoder.name=resnet50"],
        "image_size_px": 224,
    },
    "small": {  # MiniLM and EfficientNet-Lite0
        "text": "{model_type: bert, hidden_size: 384, num_hidden_layers: 6, "
        "num_attention_heads: 12, intermediate_size: 1536}",
        "image": ["model.image_encoder.name=timm:tf_efficientnet_lite0"],
        "image_size_px": 224,
    },
    "tiny": {
        "text": "{model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
        "intermediate_size: 64}",
        "image": [
            "model.image_encoder.name=hf:tiny",
            "model.image_encoder.config={model_type: resnet, embedding_size: 8, "
            "hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}",
        ],
        "image_size_px": 32,
    },
}


def settings_of(size: str, shards: str, run_dir: str, tokenizer: str) -> list[str]:
    """`section.key=value` of a run with fresh weights of `size` ("large", "small" or "tiny")."""
    sizes: dict[str, Any] = SIZES[size]
    return [
        *[f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=100000"],
        *["model.text_encoder.weights=none", f"model.text_encoder.config={sizes['text']}"],
        *[f"model.text_encoder.tokenizer={tokenizer}", "model.image_encoder.weights=none"],
        *[*sizes["image"], f"model.image_encoder.image_size_px={sizes['image_size_px']}"],
        "data.num_workers=0",
    ]


@contextmanager
def packed(shards: str | None, samples: int = 600, short_side_px: int = 256) -> Iterator[str]:
    """`shards`, or a made-up set that exists while the context is open."""
    import tempfile

    from shards.__main__ import main as shards_main

    if shards is not None:
        yield shards
        return
    with tempfile.TemporaryDirectory() as folder:
        raw, out = f"{folder}/raw", f"{folder}/shards"
        assert shards_main(["synthetic", raw, "--samples", str(samples), "--quiet"]) == 0
        side = ["--image-short-side", str(short_side_px)]
        assert shards_main(["pack", "mvsa-single", raw, out, *side, "--quiet"]) == 0
        yield out


def start_run(settings: list[str]) -> tuple[Any, Any]:
    """(config, run) as train.py has them before its first step, under the launch's engine."""
    from mmsa.config import load_config
    from mmsa.engines import engine
    from mmsa.process import runtime
    from mmsa.training.checkpoints.intact import choose_checkpoint
    from mmsa.training.run import Run
    from mmsa.training.setup import prepare_run, training_checks

    config = load_config(None, settings, checks=training_checks())
    world = runtime.world_from_environment()
    run_dir = Path(str(config.run.dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare_run(config, world, choose_checkpoint(run_dir).checkpoint)
    accelerator = engine.make_accelerator(
        config.train.mixed_precision,
        prepared.data.plan,
        clip_norm=config.optim.clip_norm,
        communication=config.train.communication,
        gpu=config.gpu,
    )
    run = Run(prepared, accelerator)
    run.model.train()
    return config, run


def one_step(config: Any, run: Any, learning_rate_share: float = 1.0) -> Any:
    """The real optimizer step, with what the loop does around it; the loss, on the device."""
    import train
    from mmsa.process.start_clock import StartClock
    from mmsa.training.optim import seed_step, set_learning_rates

    set_learning_rates(run.optimizer, learning_rate_share)
    seed_step(config.run.seed, run.state.step, run.accelerator.process_index)
    loss = train.train_step(run, StartClock()).loss
    run.state.step += 1
    return loss


Shape = tuple[int, int, int]  # samples; rows and tokens that the text encoder's body gets


def note_shapes(run: Any, seen: list[Shape]) -> None:
    """Make a run append the shape of each micro-batch to `seen`."""

    def watched(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            packed = batch["packed_ids"]  # None where packing saves too little
            ids = batch["input_ids"] if packed is None else packed
            seen.append((len(batch["labels"]), *ids.shape))
            yield batch

    run.loaders.train = watched(run.loaders.train)


def clock() -> float:
    """Seconds: CPU time of this process, or with a GPU wall time after synchronising it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_gflops(dtype: str, side: int | None = None, seconds: float = 1.5) -> float:
    """GFLOP per second of square matrix products in bfloat16, float32 or tf32, as `clock` counts.

    float32 is strict, tf32 float32 as a GPU's tensor cores take it: a run with `mixed_precision`
    no refers to the first, with tf32 to the second.
    """
    from mmsa.config import GpuConfig
    from mmsa.engines.gpu_kernels import choose_kernels, computes_in_tf32

    if dtype in ("float32", "tf32"):
        before = "tf32" if computes_in_tf32() else "no"
        choose_kernels("tf32" if dtype == "tf32" else "no", GpuConfig(), training=True)
        try:
            return _peak_gflops("float32", side, seconds)
        finally:
            choose_kernels(before, GpuConfig(), training=True)
    return _peak_gflops(dtype, side, seconds)


def _peak_gflops(dtype: str, side: int | None, seconds: float) -> float:
    import torch

    on_gpu = torch.cuda.is_available()
    side = side or (8192 if on_gpu else 2048)
    a = torch.randn(side, side, device="cuda" if on_gpu else "cpu").to(getattr(torch, dtype))
    for _ in range(2):
        a @ a
    count, best, deadline = 1, 0.0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        begin = clock()
        for _ in range(count):
            a @ a
        spent = max(clock() - begin, 1e-9)
        best = max(best, 2e-9 * side**3 * count / spent)
        count = count if spent > 0.1 else 2 * count
    return best


@cache
def gflop_of(size: str, samples: int, rows: int, tokens: int) -> float:
    """GFLOP of forward and backward of one micro-batch, counted by torch from shapes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = plain_model(size, vocab_size=1000)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        side: Any = SIZES[size]["image_size_px"]
        images = torch.zeros(samples, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        text = model.text(input_ids=ids)[0]
        features = torch.cat([text[:1, 0].expand(samples, -1), model.image(images)], dim=1)
        model.head(features).sum().backward()
    return 1e-9 * counter.get_total_flops()


def plain_model(
    size: str, vocab_size: int, text_weights: str | None = None, image_weights: str | None = None
) -> Any:
    """The same two networks and head, combined as one would without this project.

    Pretrained weights are directories as `AutoModel` and timm write them, of this size.
    """
    import torch
    import yaml
    from torch import nn
    from torchvision.models import resnet50
    from transformers import AutoConfig, AutoModel

    sizes = yaml.safe_load(str(SIZES[size]["text"]))
    text = AutoModel.from_config(
        AutoConfig.for_model(sizes.pop("model_type"), vocab_size=vocab_size, **sizes)
    )
    if text_weights is not None:
        text = AutoModel.from_pretrained(text_weights)
    text.pooler = None

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = text
            if size == "large":
                self.image, width = resnet50(), 2048
                self.image.fc = nn.Identity()
            elif size == "small":
                import timm

                self.image = timm.create_model("tf_efficientnet_lite0", num_classes=0)
                if image_weights is not None:
                    timm.models.load_checkpoint(
                        self.image, f"{image_weights}/model.safetensors", strict=False
                    )
                width = self.image.num_features
            else:
                self.image, width = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten()), 8 * 64
            self.head = nn.Sequential(
                nn.Linear(text.config.hidden_size + width, 512),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Linear(512, 3),
            )

        def forward(self, input_ids: Any, attention_mask: Any, images: Any) -> Any:
            hidden = self.text(input_ids=input_ids, attention_mask=attention_mask)[0]
            return self.head(torch.cat([hidden[:, 0], self.image(images)], dim=1))

    return Plain()
