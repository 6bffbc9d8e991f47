"""Two gloo processes of one thread each against one process of one thread: samples per second.

    python -m benchmarks.scaling [--size large] [--rounds 3] [--bucket-mb 5 25 100] [--json FILE]

The real step of train.py, accumulation 4, the same micro-batch: two processes do twice the samples
of one. Rounds alternate; medians of wall time. How two cores affect each other (memory, cache,
frequency) is part of it, so run it on an idle machine. The communication share is the time in which
only collectives run, read from a trace. --bucket-mb: DDP's gradient buckets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import real_run, results

ACCUMULATION = 4


def rank(options: argparse.Namespace) -> dict[str, Any]:
    """One rank: median seconds of a step, and how much of a traced one was only collectives."""
    import torch

    from mmsa.engines import engine
    from mmsa.training.profile import communication

    torch.set_num_threads(1)
    engine.BUCKET_MIB = dict.fromkeys(engine.BUCKET_MIB, options.bucket_mb[0])
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder:
        settings = real_run.settings_of(options.size, options.shards, folder, "words:30000")
        settings += [f"train.micro_batch_size={options.micro_batch}"]
        settings += [f"train.global_batch_size={options.micro_batch * ACCUMULATION * world_size}"]
        config, run = real_run.start_run(settings)
        times = []
        real_run.one_step(config, run)
        for _ in range(options.steps):
            run.accelerator.wait_for_everyone()
            begin = time.perf_counter()
            real_run.one_step(config, run)
            times.append(time.perf_counter() - begin)
        found = {"seconds": statistics.median(times), "alone_ms": 0.0, "traced_ms": 0.0}
        if world_size > 1:
            with torch.profiler.profile() as profiler:
                begin = time.perf_counter()
                real_run.one_step(config, run)
                found["traced_ms"] = 1e3 * (time.perf_counter() - begin)
            found["alone_ms"] = communication(profiler.events(), on_gpu=torch.cuda.is_available())[
                1
            ]
        run.accelerator.wait_for_everyone()
    return found


def launched(world_size: int, bucket_mb: float, options: argparse.Namespace) -> dict[str, Any]:
    """The result of rank 0 of a launch."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--rank", "--shards", options.shards]
    if world_size > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--nproc_per_node", str(world_size), "-m"]
    command += ["--size", options.size, "--steps", str(options.steps)]
    command += ["--bucket-mb", str(bucket_mb), "--micro-batch", str(options.micro_batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"world {world_size} failed:\n{ended.stderr[-3000:]}")
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"seconds"')]
    found: dict[str, Any] = json.loads(lines[0])
    return found


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each bucket size: samples per second of one and two processes, and the ratio."""
    alone: list[dict[str, Any]] = []
    two: dict[float, list[dict[str, Any]]] = {size: [] for size in options.bucket_mb}
    for _ in range(options.rounds):
        alone.append(launched(1, options.bucket_mb[0], options))
        for size, found in two.items():
            found.append(launched(2, size, options))
    samples = options.micro_batch * ACCUMULATION
    one_per_s = samples / statistics.median(found["seconds"] for found in alone)
    rows = []
    for size, found in two.items():
        two_per_s = 2 * samples / statistics.median(each["seconds"] for each in found)
        shares = [each["alone_ms"] / each["traced_ms"] for each in found]
        rows.append(
            {
                "bucket_mb": size,
                "one_samples_per_s": one_per_s,
                "two_samples_per_s": two_per_s,
                "times": two_per_s / one_per_s,
                "communication": statistics.median(shares),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--size", default="large", choices=tuple(real_run.SIZES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each launch")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--bucket-mb", type=float, nargs="+", default=[5.0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        found = json.dumps(rank(options))
        if os.environ.get("RANK", "0") == "0":  # printed by two ranks, the lines could mix
            print(found, flush=True)
        os._exit(0)  # gloo's threads sometimes abort a process at exit
    facts = results.hardware()
    side = 256 if options.size == "large" else 64
    with real_run.packed(options.shards, short_side_px=side) as options.shards:
        rows = measured(options)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    headings = ["gradient buckets, MiB", "one process, samples/s", "two", "times", "communication"]
    cells = [
        [
            *[f"{row['bucket_mb']:g}", f"{row['one_samples_per_s']:.2f}"],
            *[f"{row['two_samples_per_s']:.2f}", f"{row['times']:.2f}"],
            f"{row['communication']:.1%}",
        ]
        for row in rows
    ]
    print(results.markdown(headings, cells))
    results.write_json(options.json, {"hardware": facts, "rows": rows})


if __name__ == "__main__":
    main()
