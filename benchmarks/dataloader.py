"""Our loader workers compared with torch's `DataLoader` over the same stages and requests.

    python -m benchmarks.dataloader [--shards DIR] [--batches N] [--repeats N] [--starts N]
                                    [--faults] [--json FILE]

Both loaders read the same batches of 32, in worker processes started by forkserver before any
device is used. torch's has one `IterableDataset` over our stages, persistent workers, a timeout and
two batches ahead, like ours. In one process the two alternate; the table shows medians of CPU time
per batch, separately for the rank and for all its workers. The time to the first batch is wall
time, in fresh processes. With --faults (dataloader_faults.py) processes are killed and stopped, and
what a user sees is listed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.dataloader_arms import batches_of, loader_workers
from benchmarks.dataloader_faults import FAULTS, fault, first_batch_s
from benchmarks.handover import stages_of
from benchmarks.results import machine, write_json
from mmsa.data.loading.workers import AHEAD

ARMS = ("ours", "torch")
SIDES_PX = (32, 224)  # a tiny model's images, and those of most encoders


def cpu_s(pids: set[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two batches have equal values, bytes and strides."""
    return one.keys() == other.keys() and all(
        (torch.equal(value, other[name]) and value.stride() == other[name].stride())
        if isinstance(value, torch.Tensor)
        else value == other[name]
        for name, value in one.items()
    )


def compare(shards: str, side_px: int, num_workers: int, num_batches: int, repeats: int) -> Any:
    """CPU milliseconds per batch of both arms, which take turns, and whether batches are equal."""
    num_steps = (repeats + 1) * num_batches + 4 * AHEAD * num_workers
    stages = stages_of(shards, num_steps, side_px=side_px)
    batches, workers = {}, {}
    for arm in ARMS:
        before = loader_workers()
        batches[arm] = batches_of(arm, stages, num_workers)
        workers[arm] = loader_workers() - before
    first = [[next(batches[arm]) for _ in range(num_batches)] for arm in ARMS]
    equal = all(same(*pair) for pair in zip(*first, strict=True))
    spent: dict[str, dict[str, list[float]]] = {arm: {"rank": [], "workers": []} for arm in ARMS}
    for _, arm in itertools.product(range(repeats), ARMS):
        begin, workers_begin = time.process_time(), cpu_s(workers[arm])
        for _ in range(num_batches):
            next(batches[arm])
        rank_s = time.process_time() - begin
        settle(workers[arm])  # the batches ahead are part of this turn, not of the next
        spent[arm]["rank"].append(1e3 * rank_s / num_batches)
        spent[arm]["workers"].append(1e3 * (cpu_s(workers[arm]) - workers_begin) / num_batches)
    return {"equal": equal, "cpu_ms": {arm: medians(values) for arm, values in spent.items()}}


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(found) for name, found in values.items()}


def settle(pids: set[int]) -> None:
    """Wait until these workers have made what they may make ahead."""
    before, now = -1.0, cpu_s(pids)
    while now > before:
        time.sleep(0.1)
        before, now = now, cpu_s(pids)


def show(figures: dict[str, Any]) -> None:
    print("CPU time per batch of 32, ms: rank + workers; torch / ours")
    for row in figures["cpu"]:
        cells = [
            f"{arm} {row['cpu_ms'][arm]['rank']:.2f} + {row['cpu_ms'][arm]['workers']:.2f}"
            for arm in ARMS
        ]
        ours, theirs = (sum(row["cpu_ms"][arm].values()) for arm in ARMS)
        equal = "equal batches" if row["equal"] else "DIFFERENT BATCHES"
        print(f"{row['side_px']} px, {row['workers']} worker(s): {'; '.join(cells)}; "
              f"{theirs / ours:.2f}; {equal}")  # fmt: skip
    for arm, seconds in figures["first_batch_s"].items():
        print(f"first batch, {arm}: {seconds:.2f} s of wall time")
    for row in figures["faults"]:
        print(
            f"{FAULTS[row['fault']]}; {row['arm']}: exit {row['exit']} after {row['seconds']:.1f} "
            f"s, {row['processes']} process(es) and {row['names']} name(s) left: {row['message']}"
        )


def run(shards: str, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [
        {
            "side_px": side_px,
            "workers": num_workers,
            **compare(shards, side_px, num_workers, arguments.batches, arguments.repeats),
        }
        for side_px, num_workers in itertools.product(SIDES_PX, (1, 2))
    ]
    first: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _, arm in itertools.product(range(arguments.starts), ARMS):
        first[arm].append(first_batch_s(arm, shards, 2))
    cases = itertools.product(FAULTS if arguments.faults else (), ARMS)
    faults = [{"fault": name, "arm": arm, **fault(name, arm, shards)} for name, arm in cases]
    return {
        "cpu": rows, "first_batch_s": medians(first) if arguments.starts else {},
        "faults": faults, "load": os.getloadavg()[0],
    }  # fmt: skip


def packed(folder: str) -> str:
    """A synthetic set, packed."""
    from shards.__main__ import main as shards_main

    raw, shards = f"{folder}/raw", f"{folder}/shards"
    assert shards_main(["synthetic", raw, "--samples", "400"]) == 0
    assert shards_main(["pack", "mvsa-single", raw, shards, "--quiet"]) == 0
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--batches", type=int, default=40, help="in each turn of a loader")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each loader")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for the first batch")
    parser.add_argument("--faults", action="store_true", help="also kill and stop processes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments.shards or packed(folder), arguments)
    show(figures)
    write_json(arguments.json, {**machine(), **figures})


if __name__ == "__main__":
    main()
