"""CPU time of the data path by stage: from the tar to a collated training batch, one thread.

    python -m benchmarks.stream [--shards DIR] [--json FILE]

Without --shards a synthetic set is packed first. CPU time, not wall time: it does not swing with
what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
NUM_STEPS = 30


def measured(stage: Callable[..., Iterable[Any]], source: Iterator[Any] | None) -> Iterator[Any]:
    """The stage's items; the CPU time of its own work adds up in `stage.cpu_s`."""
    inner: list[float] = [0.0]

    def counted() -> Iterator[Any]:
        assert source is not None
        while True:
            begin = time.process_time()
            item = next(source, None)
            inner[0] += time.process_time() - begin
            if item is None:
                return
            yield item

    items = iter(stage() if source is None else stage(counted()))
    while True:
        begin, inner[0] = time.process_time(), 0.0
        item = next(items, None)
        SPENT[type(stage).__name__] = (
            SPENT.get(type(stage).__name__, 0.0) + time.process_time() - begin - inner[0]
        )
        if item is None:
            return
        yield item


SPENT: dict[str, float] = {}


def run(shards: str) -> dict[str, float]:
    """CPU milliseconds per sample of each stage."""
    import torch

    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.preprocessing import ImagePreprocessing, Preprocessing
    from mmsa.data.reader import SplitReader
    from mmsa.data.requests import TrainRequests
    from mmsa.data.stream import Augmentation, Collate, DecodeImages, ReadSamples
    from mmsa.data.text import word_tokenizer
    from mmsa.labels import class_map

    torch.set_num_threads(1)
    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, "train", class_map(manifest.classes, None))
    plan = batch_plan(
        len(reader), global_batch_size=BATCH_SIZE, micro_batch_size=BATCH_SIZE, world_size=1
    )
    places, _ = reader.all_records()
    texts = [reader.read(*place).text for place in places[:500].tolist()]
    requests = TrainRequests(reader, plan, 0, 0, 16, True, 0, NUM_STEPS)
    preprocessing = Preprocessing(image=ImagePreprocessing(), max_tokens=128)
    stages = [
        requests,
        ReadSamples(reader),
        DecodeImages(preprocessing, Augmentation(0, 1.0, 0.5)),
        Collate(word_tokenizer(texts, 8000, 128)),
    ]
    pipeline: Iterator[Any] | None = None
    for stage in stages:
        pipeline = measured(stage, pipeline)
    assert pipeline is not None
    for _ in range(3):  # imports, caches
        next(pipeline)
    SPENT.clear()
    num_samples = sum(len(batch["keys"]) for batch in pipeline)
    return {name: 1000 * seconds / num_samples for name, seconds in SPENT.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards
        if shards is None:
            from shards.__main__ import main as shards_main

            raw, shards = f"{folder}/raw", f"{folder}/shards"
            assert shards_main(["synthetic", raw, "--samples", "1500"]) == 0
            assert shards_main(["pack", "mvsa-single", raw, shards, "--quiet"]) == 0
        figures = run(shards)
    from rich.console import Console
    from rich.table import Table

    total = sum(figures.values())
    table = Table(title=f"data path, batch {BATCH_SIZE}, one thread, CPU time")
    for column in ("stage", "ms per sample", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, milliseconds in figures.items():
        table.add_row(name, f"{milliseconds:.3f}", f"{milliseconds / total:.0%}")
    table.add_row("all", f"{total:.3f}", "100%")
    Console().print(table)
    if arguments.json:
        facts = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        content = {**facts, "batch_size": BATCH_SIZE, "ms_per_sample": figures}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
