"""Loaders over the tiny set, and how batches are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from packed import PREPROCESSING

from mmsa.data.batch_requests import EvaluationRequests, TrainRequests
from mmsa.data.packed_texts import TextLayout, TextPacking
from mmsa.data.plan import batch_plan
from mmsa.data.read_and_decode import Augmentation
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Batch, Loader
from mmsa.data.text import TextTokenizer

AUGMENTATION = Augmentation(seed=3, min_crop_scale=0.6, flip_probability=0.5)

# Of texts whose encoder takes packed ones.
LAYOUT = TextLayout(packing=TextPacking(None))


def requests(reader: SplitReader, **changes: Any) -> TrainRequests:
    """Two epochs by default of a global batch of 8 in micro-batches of 2, on one rank."""
    settings = {
        "world_size": 1,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "drop_last": True,
        "rank": 0,
        "start_step": 0,
        "stop_step": None,
        "bucket_by_length": True,
        "groups": 1,
        **changes,
    }
    plan = batch_plan(
        len(reader),
        global_batch_size=settings["global_batch_size"],
        micro_batch_size=settings["micro_batch_size"],
        world_size=settings["world_size"],
        drop_last=settings["drop_last"],
        groups=settings["groups"],
    )
    stop_step = settings["stop_step"]
    return TrainRequests(
        reader,
        plan,
        rank=settings["rank"],
        seed=3,
        window_shards=2,
        bucket_by_length=settings["bucket_by_length"],
        start_step=settings["start_step"],
        stop_step=2 * plan.steps_per_epoch if stop_step is None else stop_step,
    )


def batches_of(
    source: TrainRequests | EvaluationRequests,
    tokenizer: TextTokenizer | None,
    *,
    workers: int = 0,
    augmentation: Augmentation | None = AUGMENTATION,
) -> Iterator[Batch]:
    return Loader(source, PREPROCESSING, tokenizer, workers, augmentation, layout=LAYOUT)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    """Equal keys and tensors, bit for bit and with the same order of dimensions in memory."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[name].dtype
                assert torch.equal(value, other[name]), name
                assert value.stride() == other[name].stride(), name
            else:
                assert value == other[name], name


def real_keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch["keys"][: batch["num_real"]]]


def keys_by_step(
    reader: SplitReader, tokenizer: TextTokenizer, num_steps: int, **changes: Any
) -> list[list[str]]:
    """The sorted keys of each step, joined over ranks that have equally many batches."""
    world_size = changes.get("world_size", 1)
    ranks = []
    for rank in range(world_size):
        source = requests(reader, rank=rank, **changes)
        ranks.append((source.plan.accumulation_steps, list(batches_of(source, tokenizer))))
    assert [len(batches) for _, batches in ranks] == [num_steps * ranks[0][0]] * world_size
    return [
        sorted(
            key
            for accumulation, batches in ranks
            for key in real_keys(batches[step * accumulation : (step + 1) * accumulation])
        )
        for step in range(num_steps)
    ]
