"""What a fusion head costs: its parameters, and a step with it compared with `concat`.

    python -m benchmarks.heads [--rounds N] [--heads NAME ...] [--precision no]

MiniLM (6 layers, width 384) and MobileNetV2 at 224 px by their sizes, fresh weights, all trained,
micro-batches of 16, texts of 8 to 59 tokens (32 on average), one thread. The heads take turns; CPU
seconds of forward and backward pass, the fastest round of each. --precision bf16 is for CPUs with
bf16 instructions; without them it takes more than ten times as long.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from mmsa.config import ModelConfig
from mmsa.models.fusion import FUSIONS
from mmsa.models.model import SentimentModel, build_model, count_parameters

_BATCH, _TOKENS, _SIDE = 16, 59, 224
_TEXT = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}


def model_of(head: str) -> SentimentModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "text_encoder": {"weights": "none", "config": _TEXT},
        "image_encoder": {"name": "mobilenet_v2", "weights": "none", "image_size_px": _SIDE},
        "fusion": {"name": head},
    }
    return build_model(ModelConfig.model_validate(settings), 3).train()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask (B, T), images (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(8, _TOKENS, _BATCH).round().long()
    mask = (torch.arange(_TOKENS) < lengths[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
    shape = (_BATCH, 3, _SIDE, _SIDE)
    return ids, mask, torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def seconds_of(
    model: SentimentModel, batch: tuple[Tensor, Tensor, Tensor], precision: str
) -> float:
    """CPU seconds of one forward and backward pass."""
    begin = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(*batch).float().logsumexp(dim=1).sum()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "no"))
    heads = [name for name, head in FUSIONS.items() if head.uses_text and head.uses_image]
    parser.add_argument("--heads", nargs="+", default=heads, choices=heads)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = inputs()
    models = {name: model_of(name) for name in options.heads}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            found = seconds_of(model, batch, options.precision)
            if turn:  # the first one warms up
                seconds[name].append(found)
    base = min(seconds[options.heads[0]])
    rows = []
    for name, model in models.items():
        fastest, trained = min(seconds[name]), count_parameters(model)["fusion"].trained
        rows.append([name, f"{trained:,}", f"{fastest:.2f}", f"{fastest / base:.3f}"])
    facts = {**results.hardware(), "precision": options.precision}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(results.markdown(["head", "parameters", "s", f"against {options.heads[0]}"], rows))


if __name__ == "__main__":
    main()
