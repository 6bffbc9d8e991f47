"""Check a packed data set against its manifest, to the last byte.

Every tar and index is read completely, from a store also what a cache has of it. Each fault is one
sentence that names the file and, where there is one, the sample. Nothing is repaired.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.decoding.limits import MOST_PIXELS_IN_SHARDS
from mmsa.data.index_file import IndexArray, key_hash, missing_bits, missing_in_words, read_index
from mmsa.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    ProtocolInfo,
    ShardInfo,
    load_manifest,
)
from mmsa.data.members import Fields, object_in, sample_of, tar_members
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import CachedFiles, LocalFiles, files_at
from mmsa.errors import ShardDamage, UserError
from mmsa.process.progress import Progress
from shards.manifest_faults import manifest_faults
from shards.packing.worker_pool import WorkerPool, default_workers
from shards.splits.protocols import protocol_hash

_SHOWN = 20  # faults of one shard that are listed


@dataclass(frozen=True)
class VerifyReport:
    """What was found: sentences, in the order of the manifest."""

    faults: list[str]
    num_samples: int
    num_shards: int


@dataclass(frozen=True)
class _Task:
    files: LocalFiles | CachedFiles
    shard: ShardInfo
    classes: tuple[str, ...]
    optional: frozenset[str]  # modalities that a sample may lack
    packing: dict[str, Any]
    decode: bool
    max_characters: int


@dataclass
class _Checked:
    """Of one shard: its faults, and the keys and groups in its samples."""

    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)


def verify(
    directory: Path | str, *, decode: bool = True, workers: int | None = None, quiet: bool
) -> VerifyReport:
    """Check the packed set in `directory`, or at that URL; with `decode` every image is decoded
    too.

    Raises `UserError` where there is no manifest at all; everything else is a fault.
    """
    try:
        manifest = load_manifest(directory)
    except UserError as error:
        if isinstance(directory, str) or not (directory / MANIFEST_NAME).is_file():
            raise
        return VerifyReport([str(error)], 0, 0)
    files = files_at(directory)
    faults = list(manifest_faults(directory, files, manifest))
    tasks = [
        _Task(
            files,
            shard,
            manifest.classes,
            frozenset(split.missing),
            manifest.packing,
            decode,
            manifest.max_characters,
        )
        for split in manifest.splits.values()
        for shard in split.shards
    ]
    total = sum(task.shard.num_samples for task in tasks)
    checked: list[_Checked] = []
    workers = min(default_workers(), max(1, len(tasks))) if workers is None else workers
    with (
        WorkerPool(workers) as pool,
        Progress(total=total, what="verifying", quiet=quiet) as progress,
    ):
        for task, result in zip(tasks, pool.map(_check_shard, tasks), strict=True):
            checked.append(result)
            progress.advance(task.shard.num_samples)
    for result in checked:
        faults += result.faults
    faults += _key_faults(manifest, checked)
    return VerifyReport(faults, total, len(tasks))


def _key_faults(manifest: Manifest, checked: list[_Checked]) -> Iterator[str]:
    """Over all shards: every key once, the protocol's hash, and no group in two splits."""
    tars = [(name, shard.tar) for name, s in manifest.splits.items() for shard in s.shards]
    first: dict[str, str] = {}
    split_of: dict[str, str] = {}
    splits_of_group: dict[int, set[str]] = {}
    for (split, tar), result in zip(tars, checked, strict=True):
        for key, group in zip(result.keys, result.groups, strict=True):
            if key in first:
                yield f"the key {key} is in {first[key]} and in {tar}; each must be there once"
            first.setdefault(key, tar)
            split_of[key] = split
            splits_of_group.setdefault(group, set()).add(split)
    # Where a shard could not be read its own faults say so; the following ones would repeat them.
    if any(result.faults for result in checked):
        return
    protocol: ProtocolInfo = manifest.protocol
    if protocol.name != "indexed" and protocol_hash(split_of) != protocol.hash:
        yield f"the keys and splits do not give the hash of protocol {protocol.name}"
    if protocol.name == "clean" or protocol.name.startswith("kfold"):
        crossing = sum(len(splits) > 1 for splits in splits_of_group.values())
        if crossing:
            yield f"{crossing} duplicate groups are in two splits, against {protocol.name}"


def _check_shard(task: _Task) -> _Checked:
    """Read one tar and its index completely."""
    result = _Checked()
    tar = task.shard.tar
    try:
        content = task.files.read(
            Wanted(task.shard.tar, task.shard.tar_bytes, task.shard.tar_sha256), again=True
        )
    except OSError as error:
        result.faults.append(f"{tar} cannot be read ({error.strerror})")
        return result
    except ShardDamage as error:  # from a store
        result.faults.append(str(error))
        return result
    if len(content) != task.shard.tar_bytes:
        result.faults.append(f"{tar} has {len(content)} bytes, not {task.shard.tar_bytes}")
    if hashlib.sha256(content).hexdigest() != task.shard.tar_sha256:
        result.faults.append(f"{tar} does not match its sha256 in the manifest")
    try:
        records = read_index(task.files, task.shard, again=True)
    except ShardDamage as error:
        result.faults.append(str(error))
        return result
    found = list(_sample_faults(task, content, records, result))
    result.faults += found[:_SHOWN]
    if len(found) > _SHOWN:
        result.faults.append(f"{tar}: {len(found) - _SHOWN} more samples with faults")
    return result


def _sample_faults(
    task: _Task, content: bytes, records: IndexArray, result: _Checked
) -> Iterator[str]:
    tar, end = task.shard.tar, 0
    others = "fields" in task.packing  # a tar packed by others may have gaps: folders, extras
    labels = [int(record["label"]) for record in records]
    yield from _behind_the_end(tar, len(content), records)
    for number, record in enumerate(records):
        start, stop = int(record["offset"]), int(record["offset"]) + int(record["length"])
        if stop > len(content):
            end = len(content)
            continue
        if start < end or (start > end and not others):
            yield f"{tar}: the index puts sample {number} at bytes {start} to {stop}, after {end}"
            continue
        end = stop
        piece = content[start:stop]
        if zlib.crc32(piece) != int(record["crc32"]):
            yield f"{tar}: sample {number} does not match its crc32 in the index"
            continue
        if int(record["label"]) >= len(task.classes):
            yield f"{tar}: sample {number} has the class {record['label']}, which has no name"
            continue
        try:
            yield from _one_sample(task, number, piece, record, result)
        except (ValueError, KeyError, OverflowError, RecursionError, tarfile.TarError) as error:
            yield f"{tar}: sample {number} cannot be read ({type(error).__name__}: {error})"
    if not others and any(content[end:]):
        yield f"{tar}: there are bytes other than zeros after the last sample"
    counts = Counter(task.classes[label] for label in labels if label < len(task.classes))
    if dict(counts) != {name: n for name, n in task.shard.classes.items() if n}:
        yield f"{tar}: the classes in its index are {dict(counts)}, unlike in the manifest"


def _behind_the_end(tar: str, tar_bytes: int, records: IndexArray) -> Iterator[str]:
    """One sentence on all samples that a tar of `tar_bytes` is too short for."""
    stops = [int(record["offset"]) + int(record["length"]) for record in records]
    behind = [number for number, stop in enumerate(stops) if stop > tar_bytes]
    if behind:
        yield (
            f"{tar} ends at byte {tar_bytes}, before {len(behind)} of its {len(records)} samples: "
            f"the first is sample {behind[0]}, at byte {int(records[behind[0]]['offset'])}"
        )


def _one_sample(
    task: _Task, number: int, piece: bytes, record: np.void, result: _Checked
) -> Iterator[str]:
    fields = Fields.of(task.packing, task.optional)
    key, image, text, json = sample_of(tar_members(piece), fields)
    meta = object_in(json)
    where = f"{task.shard.tar}: {key}"
    result.keys.append(key)
    result.groups.append(int(record["group"]))
    if key_hash(key) != int(record["key_hash"]):
        yield f"{where} (sample {number}) has another key_hash in the index"
    missing = missing_bits(has_text=text is not None, has_image=image is not None)
    if missing != int(record["missing"]):
        said = missing_in_words(int(record["missing"]))
        yield f"{where} lacks {missing_in_words(missing)}; the index says {said}"
    characters = len(text or "")
    if characters != int(record["text_length"]):
        yield f"{where} has {characters} characters; the index says {record['text_length']}"
    if "fields" not in task.packing:
        label = task.classes[int(record["label"])]
        expected = {"key": key, "label": label, "group": f"{int(record['group']):016x}"}
        for name, value in expected.items():
            if meta.get(name) != value:
                yield f"{where}: its json says {name} {meta.get(name)!r}, the index {value!r}"
    if characters > task.max_characters:
        yield f"{where} has {characters:,} characters; at most {task.max_characters:,} are read"
    if image is None and {"width", "height"} & meta.keys():
        yield f"{where}: its json has the size of an image, and it has none"
    if task.decode and image is not None:
        yield from _image_faults(where, image, meta, task.packing)


def _image_faults(
    where: str, image: bytes, meta: dict[str, Any], packing: dict[str, Any]
) -> Iterator[str]:
    from mmsa.data.decoding.posted_images import BadImage, decode_image

    try:
        pixels, header = decode_image(image, max_pixels=MOST_PIXELS_IN_SHARDS)
    except BadImage as error:
        yield f"{where}: its image does not decode ({error})"
        return
    if "fields" in packing:
        return
    height, width = pixels.shape[:2]
    if header.format != "JPEG" or (meta.get("width"), meta.get("height")) != (width, height):
        yield (
            f"{where}: its image is a {header.format} of {width}x{height}, its json says "
            f"{meta.get('width')}x{meta.get('height')}"
        )
    side = packing.get("image_short_side_px")
    if side is not None and min(width, height) > int(side):
        yield f"{where}: its image of {width}x{height} is larger than short side {side}"
