"""Loader workers: the cost of passing a batch to the rank, and a worker's memory.

    python -m benchmarks.handover [--shards DIR] [--json FILE]

Without --shards a synthetic set is packed first. Costs are CPU time, which depends less than wall
time on what else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_json

BATCH_SIZE = 32


def stages_of(
    shards: str, num_steps: int, *, side_px: int = 224, batch_size: int = BATCH_SIZE
) -> tuple[Any, Any, Any, Any]:
    """(requests, preprocessing, tokenizer, augmentation) of training batches."""
    from mmsa.data.batch_requests import TrainRequests
    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.read_and_decode import Augmentation
    from mmsa.data.reader import SplitReader
    from mmsa.data.text import word_tokenizer
    from mmsa.labels import class_map
    from mmsa.preprocessing import ImagePreprocessing, Preprocessing

    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, "train", class_map(manifest.classes, None))
    plan = batch_plan(
        len(reader), global_batch_size=batch_size, micro_batch_size=batch_size, world_size=1
    )
    places, _ = reader.all_records()
    texts = [reader.read(*place).text for place in places[:500].tolist()]
    requests = TrainRequests(reader, plan, 0, 0, 16, True, 0, num_steps)
    image = ImagePreprocessing(image_size_px=side_px, resize_px=side_px * 8 // 7)
    preprocessing = Preprocessing(image=image, max_tokens=128)
    return requests, preprocessing, word_tokenizer(texts, 8000, 128), Augmentation(0, 1.0, 0.5)


def handed_over(shards: str, number: int = 1000) -> dict[str, float]:
    """Bytes of a batch, and the CPU microseconds that worker and rank spend to pass it."""
    import psutil
    import torch

    from benchmarks.ready_batches import Ready
    from mmsa.data.loading.workers import LoaderWorkers
    from mmsa.data.stream import Loader

    requests, preprocessing, tokenizer, augmentation = stages_of(shards, 1)
    batch = next(Loader(requests, preprocessing, tokenizer, 0, augmentation))
    workers = LoaderWorkers([Ready(batch, number + 10)])
    process = psutil.Process(workers.pids[0])
    for _ in range(10):
        next(workers)
    before, begin = process.cpu_times(), time.process_time()
    for _ in range(number):
        next(workers)
    rank_s, after = time.process_time() - begin, process.cpu_times()
    worker_s = after.user + after.system - before.user - before.system
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    return {
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "worker_us": 1e6 * worker_s / number,
        "rank_us": 1e6 * rank_s / number,
    }


def memory_mib(shards: str, num_batches: int = 300) -> list[dict[str, float]]:
    """A worker's memory over time, in MiB: its own (USS), with its part of what it shares (PSS),
    with all that it shares (RSS)."""
    import psutil

    from mmsa.data.stream import Loader

    requests, preprocessing, tokenizer, augmentation = stages_of(shards, num_batches)
    loader = Loader(requests, preprocessing, tokenizer, 2, augmentation)
    process = psutil.Process(loader.worker_pids[0])
    rows = []
    for taken in range(1, num_batches + 1):
        next(loader)
        if taken in (10, num_batches // 2, num_batches):
            full = process.memory_full_info()
            sizes = {"uss": full.uss, "pss": full.pss, "rss": full.rss}
            rows.append({"taken": taken, **{name: size / 2**20 for name, size in sizes.items()}})
    return rows


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
        handing, memory = handed_over(shards), memory_mib(shards)
    print(
        f"passing a batch of {BATCH_SIZE} ({handing['bytes'] / 1e6:.1f} MB), CPU time: "
        f"{handing['worker_us']:.0f} us in the worker, {handing['rank_us']:.0f} us in the rank"
    )
    for row in memory:
        print(
            f"one of two workers after {row['taken']} batches, MiB: USS {row['uss']:.0f}, "
            f"PSS {row['pss']:.0f}, RSS {row['rss']:.0f}"
        )
    content = {"batch_size": BATCH_SIZE, "handing_over": handing, "memory_mib": memory}
    write_json(arguments.json, {**machine(), **content})


if __name__ == "__main__":
    main()
