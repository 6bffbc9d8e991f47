"""Ways to damage a packed set, some of them with a manifest that agrees to the damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmsa.data.index_file import IndexArray, index_bytes
from mmsa.data.manifest import Manifest, ShardInfo, load_manifest, write_manifest


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of the byte at `at`; twice is harmless."""
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ (1 << bit)]))


def with_shard(manifest: Manifest, split: str, number: int, shard: ShardInfo) -> Manifest:
    """`manifest` with another shard `number`."""
    info = manifest.splits[split]
    shards = (*info.shards[:number], shard, *info.shards[number + 1 :])
    splits = {**manifest.splits, split: info.model_copy(update={"shards": shards})}
    return manifest.model_copy(update={"splits": splits})


def replace_index(directory: Path, split: str, number: int, content: bytes) -> Manifest:
    """Give a shard the index file `content` and a manifest whose checksum agrees to it."""
    manifest = load_manifest(directory)
    shard = manifest.splits[split].shards[number]
    (directory / shard.index).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    changed = shard.model_copy(update={"index_sha256": digest})
    return write_manifest(directory, with_shard(manifest, split, number, changed))


def replace_records(directory: Path, split: str, number: int, records: IndexArray) -> Manifest:
    """Give a shard other index records, everything else agreeing to them."""
    shard = load_manifest(directory).splits[split].shards[number]
    content = index_bytes(records, tar_bytes=shard.tar_bytes, tar_sha256=shard.tar_sha256)
    return replace_index(directory, split, number, content)
