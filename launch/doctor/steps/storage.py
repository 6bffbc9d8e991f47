"""Space and speed where a run writes, and how fast this node reads the shards."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from launch.doctor.node import Request, this_node

_WRITTEN = 64 << 20  # bytes
_READ = 128 << 20  # bytes, at most
_PIECE = 4 << 20
_READS_FOR_S = 2.0
_BATCH = 64  # samples of the steps that are read


def run(request: Request) -> dict[str, Any]:
    """`run_dir`, `temporary`, `shards`: each only where requested, with "error" where it fails."""
    facts: dict[str, Any] = {"temporary": _place(Path(tempfile.gettempdir()))}
    if request.get("run_dir"):
        facts["run_dir"] = _written(Path(request["run_dir"]), this_node(request))
    if request.get("shards"):
        try:
            facts["shards"] = _read(Path(request["shards"]))
        except Exception as error:  # a UserError of the reader, or what the file system says
            facts["shards"] = {"error": " ".join(str(error).split())[:600]}
    return facts


def _place(path: Path) -> dict[str, Any]:
    usage = shutil.disk_usage(path)
    return {"path": str(path), "free_bytes": usage.free, "total_bytes": usage.total}


def _written(path: Path, node: str) -> dict[str, Any]:
    """Write a file of 64 MiB to the directory, or the nearest one that exists, and remove it."""
    place = path.absolute()
    while not place.is_dir():
        place = place.parent
    facts = _place(place)
    file = place / f".doctor-{node}-{os.getpid()}"
    piece = os.urandom(_PIECE)
    try:
        start = time.perf_counter()
        with open(file, "xb", buffering=0) as target:
            for _ in range(_WRITTEN // _PIECE):
                if target.write(piece) < _PIECE:  # a raw write stops where the disk is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(target.fileno())
        facts["write_bytes_per_s"] = _WRITTEN / (time.perf_counter() - start)
    except OSError as error:
        facts["error"] = f"{place}: {error.strerror}"
    finally:
        file.unlink(missing_ok=True)
    return facts


def _read(path: Path) -> dict[str, Any]:
    """Read the shards as one file after the other, then sample by sample as training does."""
    from mmsa.data.manifest import load_manifest
    from mmsa.data.reader import SplitReader
    from mmsa.labels import class_map

    manifest = load_manifest(str(path))
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    reader = SplitReader(path, manifest, split, class_map(manifest.classes, None))
    tars = [reader.shards.tar(number) for number in range(len(reader.sizes))]
    num_bytes, seconds = _sequential([path / tar for tar in tars])
    samples, sample_bytes, sample_seconds = _as_training_reads(reader)
    return {
        "digest": manifest.digest,
        "samples": len(reader),
        "read_bytes": num_bytes,
        "bytes_per_s": num_bytes / seconds,
        "samples_per_s": samples / sample_seconds,
        "sample_bytes_per_s": sample_bytes / sample_seconds,
    }


def _sequential(files: list[Path]) -> tuple[int, float]:
    """(bytes, seconds) of reading files in whole, after asking the kernel to forget them."""
    total, start = 0, time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as source:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while total < _READ and (piece := source.read(_PIECE)):
                total += len(piece)
        if total >= _READ:
            break
    return total, max(time.perf_counter() - start, 1e-9)


def _as_training_reads(reader: Any) -> tuple[int, int, float]:
    """(samples, their bytes, seconds), in the order of an epoch, with checksums, undecoded."""
    from mmsa.config import DataConfig
    from mmsa.data.order import Order

    order = Order(
        reader.sizes,
        identity=reader.identity,
        seed=0,
        epoch=0,
        window_shards=DataConfig.model_fields["window_shards"].default,
        groups=1,
        global_batch_size=_BATCH,
    )
    samples = num_bytes = 0
    start = time.perf_counter()
    for first in range(0, len(reader), _BATCH):
        shards, ordinals = order.slice(first, min(first + _BATCH, len(reader)))
        for shard, ordinal in zip(shards.tolist(), ordinals.tolist(), strict=True):
            sample = reader.read(shard, ordinal)
            num_bytes += len(sample.image) + len(sample.text) + len(sample.json)
            samples += 1
        if time.perf_counter() - start > _READS_FOR_S:
            break
    return samples, num_bytes, max(time.perf_counter() - start, 1e-9)
