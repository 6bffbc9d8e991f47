"""An evaluation whose forward pass is a collective, as under ZeRO-3; run directly or launched.

collective_forward.py SHARDS OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from mmsa.data.batch_requests import EvaluationRequests
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Batch, Loader
from mmsa.engines import engine
from mmsa.evaluation.predict import predict_split
from mmsa.labels import LABEL_NAMES, class_map
from mmsa.preprocessing import ImagePreprocessing, Preprocessing
from mmsa.process import runtime

SIDE, BATCH_SIZE = 24, 4


class PartitionedHead(nn.Module):
    """Pixels -> logits (B, C) with a weight whose rows are divided among the ranks.

    Each forward pass joins the parts with an all-reduce, so a rank that makes one pass more or
    fewer than the others leaves them waiting.
    """

    def __init__(self, world: runtime.World) -> None:
        super().__init__()
        whole = torch.randn(3 * SIDE * SIDE, 3, generator=torch.Generator().manual_seed(1))
        mine = torch.arange(len(whole)) % world.world_size == world.rank
        self.register_buffer("part", torch.where(mine[:, None], whole, 0.0))
        self.passes = 0

    def forward(
        self, input_ids: None, attention_mask: None, images: Tensor, *present: None
    ) -> Tensor:
        weight = self.part.clone()
        if distributed.is_initialized():
            distributed.all_reduce(weight)  # only adds zeros, so it is exact
        self.passes += 1
        return images.flatten(1).float() / 255 @ weight


def evaluate(shards: Path, out: Path) -> None:
    """Write each rank's final predictions, the keys that it computed and its number of passes."""
    world = runtime.world_from_environment()
    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, "train", class_map(manifest.classes, None))
    requests = EvaluationRequests(reader, BATCH_SIZE, world.world_size, world.rank)
    image = ImagePreprocessing(image_size_px=SIDE, resize_px=32)
    batches = Loader(requests, Preprocessing(image=image, max_tokens=12), None, 0)
    torch.set_num_threads(1)
    accelerator = engine.make_accelerator("no")
    model, keys = PartitionedHead(world), []

    def noted() -> Iterator[Batch]:
        for batch in batches:
            keys.extend(batch["keys"][: batch["num_real"]])
            yield batch

    predictions, per_rank = predict_split(
        model,
        noted(),
        len(requests),
        accelerator=accelerator,
        label_names=LABEL_NAMES,
        num_samples=len(reader),
    )
    facts: dict[str, Any] = {
        "keys": keys,
        "passes": model.passes,
        "per_rank": per_rank,
        "world_size": accelerator.num_processes,
    }
    (out / f"rank-{world.rank}.json").write_text(json.dumps(facts))
    np.save(out / f"logits-{world.rank}.npy", predictions.logits)
    (out / f"keys-{world.rank}.json").write_text(json.dumps(list(predictions.keys)))
    if world.world_size > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()


if __name__ == "__main__":
    runtime.prepare_process()
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]))
