"""The second half of packing: chunks and a split become tars, each written by any process."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsa.data.manifest import MODALITIES, Modality, ShardInfo, SplitInfo
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json
from mmsa.process.progress import Progress
from shards.example import EncodedSample
from shards.packing.settings import ShardSize
from shards.packing.tars import PackedSample, write_shard
from shards.packing.worker_pool import WorkerPool
from shards.splits.by_hash import packed_order, shard_sizes
from shards.splits.protocols import Assignment

# A sample, and the number of its duplicate group.
Grouped = tuple[EncodedSample, int]


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written into `work/out`; `work/done/NAME.json` says that it is finished."""

    work: Path
    name: str
    samples: Sequence[Grouped]
    classes: tuple[str, ...]


def write_splits(
    work: Path,
    splits: Sequence[str],
    samples: Mapping[str, EncodedSample],
    assignment: Assignment,
    classes: tuple[str, ...],
    size: ShardSize,
    pool: WorkerPool,
    *,
    quiet: bool,
) -> dict[str, SplitInfo]:
    """Write the shards of `splits` into `work/out`; a split may be empty.

    `samples` is by key. A shard that an earlier packing finished from the same samples is checked
    and used again.
    """
    split_of, group_of = assignment.split_of, assignment.group_of
    tasks: list[tuple[str, ShardTask]] = []
    for split in splits:
        keys = packed_order([key for key, name in split_of.items() if name == split])
        grouped = [(samples[key], group_of[key]) for key in keys]
        for number, part in enumerate(_cut(grouped, size)):
            tasks.append((split, ShardTask(work, f"{split}-{number:05d}", part, classes)))
    shards: dict[str, list[ShardInfo]] = {split: [] for split in splits}
    with Progress(total=len(split_of), what="writing", quiet=quiet) as progress:
        done = pool.map(make_shard, (task for _, task in tasks))
        for (split, _), shard in zip(tasks, done, strict=True):
            shards[split].append(shard)
            progress.advance(shard.num_samples)
    return {split: split_info(parts, classes) for split, parts in shards.items()}


def split_info(shards: Sequence[ShardInfo], classes: Sequence[str]) -> SplitInfo:
    """The manifest's entry for a split of these shards."""
    counts: Counter[str] = Counter()
    missing: Counter[Modality] = Counter()
    for shard in shards:
        counts.update(shard.classes)
        missing.update(shard.missing)
    return SplitInfo(
        num_samples=sum(shard.num_samples for shard in shards),
        classes={label: counts[label] for label in classes},
        shards=tuple(shards),
        missing={name: missing[name] for name in MODALITIES if missing[name]},
    )


def make_shard(task: ShardTask) -> ShardInfo:
    """Write the shard of `task`, or use the one that an earlier packing finished."""
    directory = task.work / "out"
    record = task.work / "done" / f"{task.name}.json"
    fingerprint = hashlib.sha256(repr((task.samples, task.classes)).encode()).hexdigest()
    finished = _finished(record, directory, fingerprint)
    if finished is not None:
        return finished
    packed = (PackedSample.of(one, group, _image(one)) for one, group in task.samples)
    shard = write_shard(directory, task.name, packed, task.classes)
    content = {"fingerprint": fingerprint, "shard": shard.model_dump(mode="json")}
    write_file(record, json.dumps(content), durable=False)  # last: without it nothing is finished
    return shard


def _finished(record: Path, directory: Path, fingerprint: str) -> ShardInfo | None:
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
        if content["fingerprint"] != fingerprint:
            return None
        shard = ShardInfo.model_validate(content["shard"])
        for name, digest in ((shard.tar, shard.tar_sha256), (shard.index, shard.index_sha256)):
            with (directory / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shard


def _image(sample: EncodedSample) -> bytes:
    with open(sample.chunk, "rb") as file:
        file.seek(sample.offset)
        image = file.read(sample.length)
    assert zlib.crc32(image) == sample.crc32, (sample.chunk, sample.key)
    return image


def _cut(samples: Sequence[Grouped], size: ShardSize) -> Iterator[Sequence[Grouped]]:
    """The samples of each shard of a split."""
    sizes = shard_sizes(len(samples), size.samples)
    if size.num_bytes is not None:
        sizes = _sizes_by_bytes([_tar_bytes(*one) for one in samples], size)
    start = 0
    for count in sizes:
        yield samples[start : start + count]
        start += count


def _tar_bytes(sample: EncodedSample, group: int) -> int:
    """Bytes that a sample takes in a tar; zeros take the place of its image."""
    return len(PackedSample.of(sample, group, bytes(sample.length)).tar_bytes())


def _sizes_by_bytes(sample_bytes: Sequence[int], size: ShardSize) -> list[int]:
    """Samples of each shard: as few shards as keep each within the limits of `size`.

    Sizes differ by one at most. A shard may pass the limit of bytes only where it holds a sample
    that is too large for any shard; it then has as few others as equal sizes allow.
    """
    assert size.num_bytes is not None
    total = len(sample_bytes)
    if total == 0:
        return []
    num_shards = max(-(-sum(sample_bytes) // size.num_bytes), -(-total // (size.samples or total)))
    while True:
        num_shards = min(num_shards, total)
        small, larger = divmod(total, num_shards)
        sizes = [small + 1] * larger + [small] * (num_shards - larger)
        start, largest = 0, 0
        for count in sizes:
            largest = max(largest, sum(sample_bytes[start : start + count]))
            start += count
        if largest <= size.num_bytes or num_shards == total:
            return sizes
        num_shards += max(1, num_shards // 50)
