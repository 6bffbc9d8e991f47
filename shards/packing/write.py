"""The second half of packing: chunks and a split become tars, each written by any process."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmsa.atomic_write import write_file
from mmsa.data.manifest import ShardInfo, SplitInfo
from mmsa.process.progress import Progress
from shards.packing.chunks import Encoded
from shards.packing.settings import ShardSize
from shards.packing.tars import PackedSample, write_shard
from shards.packing.worker_pool import WorkerPool
from shards.splits.by_hash import packed_order, shard_sizes

_BLOCK = 512  # bytes: a tar header, and what members are padded to


@dataclass(frozen=True, slots=True)
class Located:
    """A usable example, the chunk file that holds its picture, and its duplicate group."""

    sample: Encoded
    chunk: str
    group: int

    def packed(self, image: bytes) -> PackedSample:
        """The sample as it goes into a tar."""
        sample = self.sample
        labels = {"text_label": sample.text_label, "image_label": sample.image_label}
        facts = {
            **{name: label for name, label in labels.items() if label is not None},
            "source_id": sample.source_id,
            "dataset": sample.dataset,
            "width": sample.width,
            "height": sample.height,
            **sample.extra,
        }
        return PackedSample(sample.key, sample.label, self.group, sample.text, image, facts)

    def tar_bytes(self) -> int:
        """Bytes that it takes in a tar."""
        sizes = [len(content) for content in self.packed(b"").members().values()]
        sizes[0] = self.sample.length
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written into `directory`; `done` is where its record goes."""

    directory: str
    done: str
    name: str
    samples: Sequence[Located]
    classes: tuple[str, ...]


def write_splits(
    work: Path,
    splits: Sequence[str],
    split_of: Mapping[str, str],
    located: Mapping[str, Located],
    classes: tuple[str, ...],
    size: ShardSize,
    workers: WorkerPool,
    *,
    quiet: bool,
) -> dict[str, SplitInfo]:
    """Write the shards of `splits` into `work/out`; a split may be empty.

    `split_of` and `located` are by key. A shard that is there, whole and of the same samples, is
    used again.
    """
    plan: list[tuple[str, ShardTask]] = []
    for split in splits:
        keys = packed_order([key for key, name in split_of.items() if name == split])
        samples = [located[key] for key in keys]
        for number, part in enumerate(_cut(samples, size)):
            name = f"{split}-{number:05d}"
            task = ShardTask(
                str(work / "out"), str(work / "done" / f"{name}.json"), name, part, classes
            )
            plan.append((split, task))
    shards: dict[str, list[ShardInfo]] = {split: [] for split in splits}
    with Progress(total=len(split_of), what="writing", quiet=quiet) as told:
        done = workers.map(make_shard, (task for _, task in plan))
        for (split, _), shard in zip(plan, done, strict=True):
            shards[split].append(shard)
            told.advance(shard.num_samples)
    return {split: split_info(parts, classes) for split, parts in shards.items()}


def split_info(shards: Sequence[ShardInfo], classes: Sequence[str]) -> SplitInfo:
    """What the manifest says of a split of these shards."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.classes)
    return SplitInfo(
        num_samples=sum(shard.num_samples for shard in shards),
        classes={label: counts[label] for label in classes},
        shards=tuple(shards),
    )


def make_shard(task: ShardTask) -> ShardInfo:
    """Write the shard of `task`, or use the one that is there already."""
    record = Path(task.done)
    fingerprint = hashlib.sha256(repr((task.samples, task.classes)).encode()).hexdigest()
    there = _finished(record, Path(task.directory), fingerprint)
    if there is not None:
        return there
    shard = write_shard(Path(task.directory), task.name, _with_images(task.samples), task.classes)
    content = {"fingerprint": fingerprint, "shard": shard.model_dump(mode="json")}
    write_file(record, json.dumps(content), durable=False)  # killed before this: nothing is done
    return shard


def _finished(record: Path, directory: Path, fingerprint: str) -> ShardInfo | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
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


def _with_images(samples: Sequence[Located]) -> Iterator[PackedSample]:
    files: dict[str, BinaryIO] = {}
    try:
        for one in samples:
            # One chunk at a time stays open: a big set has more of them than a process may open.
            if one.chunk not in files:
                for file in files.values():
                    file.close()
                files = {one.chunk: open(one.chunk, "rb")}  # noqa: SIM115
            file = files[one.chunk]
            file.seek(one.sample.offset)
            image = file.read(one.sample.length)
            assert zlib.crc32(image) == one.sample.crc32, (one.chunk, one.sample.key)
            yield one.packed(image)
    finally:
        for file in files.values():
            file.close()


def _cut(samples: Sequence[Located], size: ShardSize) -> Iterator[Sequence[Located]]:
    sizes = shard_sizes(len(samples), size.samples)
    if size.num_bytes is not None:
        sizes = _sizes_by_bytes([one.tar_bytes() for one in samples], size)
    start = 0
    for count in sizes:
        yield samples[start : start + count]
        start += count


def _sizes_by_bytes(sample_bytes: Sequence[int], size: ShardSize) -> list[int]:
    """Samples of each shard: as few shards as keep each within the bytes (and samples) asked for.

    Sizes differ by one at most. A sample larger than a whole shard gets one with as few others as
    the equal cut allows: the limit is on what can be kept.
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
