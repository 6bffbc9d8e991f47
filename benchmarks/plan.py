"""The plan at scale: 10^8 samples in 10^5 uneven shards, in CPU time, counts and bytes.

    python -m benchmarks.plan [--shards N] [--json FILE]

The shards are simulated: the manifest's entries are made up, and index files are written only for
the windows that are read.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.results import write_json
from mmsa.data.audit_files import AuditWriter
from mmsa.data.batch_requests import TrainRequests
from mmsa.data.index_file import INDEX_DTYPE, index_bytes
from mmsa.data.manifest import (
    Manifest,
    ProtocolInfo,
    ShardInfo,
    SplitInfo,
    load_manifest,
    write_manifest,
)
from mmsa.data.order import Order
from mmsa.data.plan import batch_plan
from mmsa.data.reader import SplitReader
from mmsa.labels import LABEL_NAMES, class_map

NUM_SHARDS = 100_000
MEAN_SIZE = 1000  # samples a shard; from half to one and a half times this
WINDOW_SHARDS = 16
DIGEST = "0" * 64


def digest_of_tar(number: int) -> str:
    """A digest of its own for each: a manifest that lists the same bytes twice is refused."""
    return f"{number:064x}"


class SimulatedShards:
    """Entries of a manifest, made on demand; index files for some of them."""

    def __init__(self, directory: Path, num_shards: int) -> None:
        spread = np.random.default_rng(0).integers(-500, 501, num_shards)
        self.directory = directory
        self.sizes = MEAN_SIZE + spread
        self.digests: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[ShardInfo]:
        for number, size in enumerate(self.sizes.tolist()):
            counts = [size - 2 * (size // 3), size // 3, size // 3]
            yield ShardInfo.model_construct(
                tar=f"train-{number:05d}.tar",
                tar_bytes=size * 20_480,
                tar_sha256=digest_of_tar(number),
                index=f"train-{number:05d}.idx",
                index_sha256=self.digests.get(number, DIGEST),
                num_samples=size,
                classes=dict(zip(LABEL_NAMES, counts, strict=True)),
            )

    def write_index(self, number: int) -> None:
        size = int(self.sizes[number])
        records = np.zeros(size, dtype=INDEX_DTYPE)
        records["offset"] = np.arange(size) * 20_480
        records["length"] = 20_480
        records["key_hash"] = np.arange(size) + number * 10_000
        records["text_length"] = np.random.default_rng(number).integers(20, 280, size)
        records["label"] = np.arange(size) % 3
        content = index_bytes(records, tar_bytes=size * 20_480, tar_sha256=digest_of_tar(number))
        (self.directory / f"train-{number:05d}.idx").write_bytes(content)
        self.digests[number] = hashlib.sha256(content).hexdigest()


def simulated_manifest(train: SplitInfo) -> Manifest:
    return Manifest.model_construct(
        dataset="simulated",
        classes=LABEL_NAMES,
        label_rule="none",
        protocol=ProtocolInfo(name="none", version=1, settings={}, hash=DIGEST),
        source={},
        packing={},
        splits={"train": train},
        digest=DIGEST,
    )


def simulated_reader(shards: SimulatedShards) -> SplitReader:
    info = SplitInfo.model_construct(num_samples=0, classes={}, shards=cast(Any, shards))
    classes = class_map(LABEL_NAMES, None)
    return SplitReader(shards.directory, simulated_manifest(info), "train", classes)


def requests_at(reader: SplitReader, global_batch: int, step: int, num_steps: int) -> TrainRequests:
    """Requests of one of eight ranks, from `step` on."""
    plan = batch_plan(
        len(reader), global_batch_size=global_batch, micro_batch_size=global_batch // 8,
        world_size=8,
    )  # fmt: skip
    return TrainRequests(reader, plan, 0, 0, WINDOW_SHARDS, True, step, step + num_steps)


def prepare(directory: Path, num_shards: int, windows: int, at: float) -> tuple[SplitReader, int]:
    """(reader, first position of the windows): index files for `windows` windows that follow the
    fraction `at` of the order."""
    shards = SimulatedShards(directory, num_shards)
    reader = simulated_reader(shards)
    order = Order(
        reader.sizes, identity=reader.identity, seed=0, epoch=0, window_shards=WINDOW_SHARDS
    )
    start = int(len(order) * at)
    stop = min(start + windows * WINDOW_SHARDS * MEAN_SIZE, len(order))
    for number in np.unique(order.slice(start, stop)[0]):
        shards.write_index(int(number))
    return simulated_reader(shards), start


def peak_bytes(reader: SplitReader, global_batch: int, step: int, num_steps: int) -> int:
    """Peak memory of Python and numpy in a worker: its reader, the order, open windows."""
    travelling = pickle.dumps(requests_at(reader, global_batch, step, num_steps))
    tracemalloc.start()
    requests = pickle.loads(travelling)
    for _ in requests():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def measure(num_shards: int) -> list[dict[str, Any]]:
    """A row per global batch and place in the epoch."""
    rows = []
    for at in (0.0, 0.5):
        with tempfile.TemporaryDirectory() as folder:
            reader, start = prepare(Path(folder), num_shards, 6, at)
            for global_batch in (32, 256, 1024, 4096):
                step = -(-start // global_batch)
                num_steps = max(1, 4 * WINDOW_SHARDS * MEAN_SIZE // global_batch)
                fresh = pickle.loads(pickle.dumps(reader))
                source = requests_at(fresh, global_batch, step, num_steps)()
                begin = time.process_time()
                next(source)
                first = time.process_time() - begin
                for _ in source:
                    pass
                every = time.process_time() - begin
                rows.append(
                    {
                        "place": f"{at:.0%}",
                        "global_batch": global_batch,
                        "first_step_ms": 1e3 * first,
                        "later_step_ms": 1e3 * (every - first) / max(num_steps - 1, 1),
                        "peak_mib": peak_bytes(reader, global_batch, step, num_steps) / 2**20,
                    }
                )
    return rows


def audit_cost_us(keys_per_step: int = 32) -> float:
    """CPU microseconds of one audit line of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        writer = AuditWriter(Path(folder), start_step=0, rank=0, world_size=1)
        keys = [f"mvsa-single-{number:06d}" for number in range(keys_per_step)]
        begin = time.process_time()
        for step in range(20_000):
            writer.write(step + 1, keys)
        return 1e6 * (time.process_time() - begin) / 20_000


def manifest_cost_s(num_shards: int) -> float:
    """CPU seconds in which a rank loads and checks the manifest; no index is opened."""
    with tempfile.TemporaryDirectory() as folder:
        shards = SimulatedShards(Path(folder), num_shards)
        info = SplitInfo(num_samples=int(shards.sizes.sum()), classes={}, shards=tuple(shards))
        write_manifest(Path(folder), simulated_manifest(info))
        begin = time.process_time()
        load_manifest(folder)
        return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=NUM_SHARDS, help="simulated shards")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows, audit_us = measure(arguments.shards), audit_cost_us()
    manifest_s = manifest_cost_s(arguments.shards)
    from rich.console import Console
    from rich.table import Table

    title = f"{arguments.shards * MEAN_SIZE:.0e} samples in {arguments.shards} shards, CPU time"
    table = Table(title=title)
    for column in ("place in the epoch", "global batch", "first step, ms", "later step, ms", "MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *[row["place"], str(row["global_batch"]), f"{row['first_step_ms']:.1f}"],
            *[f"{row['later_step_ms']:.3f}", f"{row['peak_mib']:.1f}"],
        )
    Console().print(table)
    print(f"audit: {audit_us:.1f} microseconds of CPU time for a step's 32 keys")
    print(f"manifest: {manifest_s:.1f} seconds of CPU time to load and check")
    write_json(arguments.json, {"rows": rows, "audit_us": audit_us, "manifest_s": manifest_s})


if __name__ == "__main__":
    main()
