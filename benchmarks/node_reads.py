"""What the nodes of a job fetch from shared storage: `data.groups`, by counting reads.

    python -m benchmarks.node_reads [--json FILE]

Simulates the defaults of docs/data.md: samples of 17 kB, shards of 1,000, windows of 16, 8 GPUs a
node, storage that delivers blocks of 1 MiB (60 samples). Each node reads as many samples as
a window has, those that the plan gives to its ranks, and keeps every block that it fetched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write_json
from mmsa.data.order import Order
from mmsa.data.plan import batch_plan

SHARD_SAMPLES = 1000
WINDOW_SHARDS = 16
GPUS = 8  # of a node
BATCH = 8  # samples of a GPU in a step
BLOCK_SAMPLES = 60
SAMPLES_PER_NODE = 16_000  # as many as a window has


def blocks_fetched(nodes: int, groups: int) -> dict[str, Any]:
    """Blocks that all nodes fetch, over those that hold what they need."""
    world = nodes * GPUS
    batch = world * BATCH
    # Twice what is read: no window is cut off by the end of the epoch.
    num_shards = 2 * nodes * SAMPLES_PER_NODE // SHARD_SAMPLES
    sizes = np.full(num_shards, SHARD_SAMPLES)
    plan = batch_plan(
        int(sizes.sum()),
        global_batch_size=batch,
        micro_batch_size=BATCH,
        world_size=world,
        groups=groups,
    )
    order = Order(
        sizes,
        identity="simulated",
        seed=0,
        epoch=0,
        window_shards=WINDOW_SHARDS,
        groups=groups,
        global_batch_size=batch,
    )
    steps = SAMPLES_PER_NODE * nodes // batch
    per_shard = -(-SHARD_SAMPLES // BLOCK_SAMPLES)
    fetched: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(nodes)]
    for step in range(steps):
        _, start, stop = plan.locate(step)
        shards, ordinals = order.slice(start, stop)
        blocks = shards * per_shard + ordinals // BLOCK_SAMPLES
        for node in range(nodes):
            # Without length buckets a rank's samples are any of its block's, evenly.
            first = plan.block(node * GPUS, start, stop)
            last = plan.block(node * GPUS + GPUS - 1, start, stop)
            inside = blocks[first.start - start : last.stop - start]
            ranks = first.plan.world_size
            if last.start == first.start and ranks > GPUS:
                offset = first.rank * BATCH
                inside = inside[offset : offset + GPUS * BATCH]
            fetched[node].append(inside)
    read = [np.unique(np.concatenate(parts)) for parts in fetched]
    needed = len(np.unique(np.concatenate(read)))
    return {
        "nodes": nodes,
        "groups": groups,
        "blocks_needed": needed,
        "blocks_fetched": sum(map(len, read)),
        "fetched_over_needed": sum(map(len, read)) / needed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = [
        blocks_fetched(nodes, groups)
        for nodes in (1, 2, 8, 32, 128)
        for groups in dict.fromkeys((1, min(nodes, 8), nodes))
    ]
    from rich.console import Console
    from rich.table import Table

    table = Table(title="blocks fetched by all nodes / blocks needed")
    for name in ("nodes", "groups", "fetched / needed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row["nodes"]), str(row["groups"]), f"{row['fetched_over_needed']:.2f}")
    Console().print(table)
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
