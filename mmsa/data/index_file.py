"""The index file next to each tar: where its samples are, their checksums, and what they lack.

docs/shard-format.md describes the format for other programs. Packing writes these files; the reader
and all reports read them. Nothing here opens a tar.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mmsa.data.manifest import MODALITIES, Modality, ShardInfo
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import CachedFiles, LocalFiles, files_at
from mmsa.errors import ShardDamage
from mmsa.foundation.urls import joined

INDEX_MAGIC = b"MMSA-IDX"
# Version 2 has samples that lack a modality. An index without such samples is written as version 1,
# whose last field is always 0.
INDEX_VERSIONS = (1, 2)
# magic, version, bytes per record, records, bytes of the tar, sha256 of the tar: 64 bytes
_INDEX_HEADER = struct.Struct("<8sIIQQ32s")

# One record per sample, in tar order, little-endian whatever the machine: 40 bytes.
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the sample's first tar header, bytes from the start of the tar
        ("key_hash", "<u8"),  # key_hash(key)
        ("group", "<u8"),  # key_hash of the first key of its duplicate group; its own when alone
        ("length", "<u4"),  # bytes of all its members with headers and padding: one read gets it
        ("crc32", "<u4"),  # zlib.crc32 of those bytes
        ("text_length", "<u4"),  # characters of its text
        ("label", "<u2"),  # position in the manifest's `classes`
        ("missing", "<u2"),  # `missing_bits` of what the sample lacks
    ]
)
IndexArray = np.ndarray[Any, np.dtype[np.void]]

_BIT: dict[Modality, int] = {"text": 1, "image": 2}
_MOST_MISSING = max(_BIT.values())  # a sample has at least one modality


def index_size(num_samples: int) -> int:
    """The size of an index file of this many records."""
    return _INDEX_HEADER.size + num_samples * INDEX_DTYPE.itemsize


def index_of(shard: ShardInfo) -> Wanted:
    """The index of a shard as a file of a store."""
    return Wanted(shard.index, index_size(shard.num_samples), shard.index_sha256)


def missing_bits(*, has_text: bool, has_image: bool) -> int:
    """What a sample lacks, as the index says it: 1 for its text, 2 for its image, else 0."""
    return _BIT["text"] * (not has_text) + _BIT["image"] * (not has_image)


def missing_in_words(bits: int) -> str:
    """`missing_bits` for a message."""
    return {0: "nothing", 1: "its text", 2: "its image"}.get(bits, "both")


def lacks(records: IndexArray, modality: Modality) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) whether each of `records` is of a sample without its `modality`."""
    return (records["missing"] & _BIT[modality]) != 0


def missing_counts(records: IndexArray) -> dict[Modality, int]:
    """Modality -> number of samples without it, where there are any: as in the manifest."""
    counts: dict[Modality, int] = {name: int(lacks(records, name).sum()) for name in MODALITIES}
    return {name: number for name, number in counts.items() if number}


def key_hash(key: str) -> int:
    """The 64-bit hash of a key in the index: the first 8 bytes of its sha256, little-endian."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "little")


def index_bytes(records: IndexArray, *, tar_bytes: int, tar_sha256: str) -> bytes:
    """The content of an index file for `records` (N,) of `INDEX_DTYPE`, in tar order."""
    assert records.dtype == INDEX_DTYPE, records.dtype
    header = _INDEX_HEADER.pack(
        INDEX_MAGIC,
        INDEX_VERSIONS[bool(records["missing"].any())],
        INDEX_DTYPE.itemsize,
        len(records),
        tar_bytes,
        bytes.fromhex(tar_sha256),
    )
    return header + records.tobytes()


def read_index(
    directory: str | os.PathLike[str] | LocalFiles | CachedFiles,
    shard: ShardInfo,
    *,
    again: bool = False,
) -> IndexArray:
    """Read the index of `shard` whole, (num_samples,) of `INDEX_DTYPE`, and check it.

    `directory` may be a URL. The bytes come from the node's cache if it is one, with `again` from
    the store itself.

    It is not memory-mapped, because a file truncated on a network file system would cause SIGBUS.
    Raises `ShardDamage` if it is missing, changed, or made for another tar.
    """
    files = directory if isinstance(directory, LocalFiles | CachedFiles) else files_at(directory)
    path = joined(files.location, shard.index)

    def damage(what: str, remedy: str = "Restore it, or pack the data again") -> ShardDamage:
        return ShardDamage(f"the index {path} {what}. {remedy}", shard=shard.tar)

    try:
        content = _whole(files, index_of(shard), damage, again)
    except OSError as error:
        raise damage(f"cannot be read ({error.strerror or error})") from None
    if len(content) < _INDEX_HEADER.size:
        raise damage("is shorter than its header")
    magic, version, record_bytes, count, tar_bytes, tar_sha256 = _INDEX_HEADER.unpack_from(content)
    expected_size = index_size(shard.num_samples)
    known = magic == INDEX_MAGIC and version in INDEX_VERSIONS
    if not known or record_bytes != INDEX_DTYPE.itemsize:
        raise damage(f"has version {version} and {record_bytes} bytes per record")
    if count != shard.num_samples or len(content) != expected_size:
        raise damage(f"holds {count} records; the manifest says {shard.num_samples}")
    if tar_bytes != shard.tar_bytes or tar_sha256.hex() != shard.tar_sha256:
        raise damage("was made for another tar")
    records: IndexArray = np.frombuffer(content, dtype=INDEX_DTYPE, offset=_INDEX_HEADER.size)
    most = int(records["missing"].max()) if count else 0
    if most > _MOST_MISSING or version != INDEX_VERSIONS[most > 0]:
        raise damage(f"has version {version} and a sample that lacks {most}: version 1 has 0 alone")
    if missing_counts(records) != shard.missing:
        raise damage(
            f"says that samples lack {missing_counts(records)}; the manifest says {shard.missing}"
        )
    return records


def _whole(
    files: LocalFiles | CachedFiles, wanted: Wanted, damage: Callable[..., ShardDamage], again: bool
) -> bytes:
    """The bytes of an index with the digest of the manifest; from a cache that changed them they
    are fetched again. Raises `OSError` and `ShardDamage`."""

    def is_whole(content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == wanted.sha256

    changed = "does not match the manifest's sha256"
    content = files.read(wanted, again=again)
    if is_whole(content):
        return content
    if isinstance(files, LocalFiles):
        raise damage(f"{changed}: it is damaged or of other shards")
    cached = files.cache.path(wanted.sha256)  # it was right when it was fetched
    try:
        content = files.read(wanted, again=True)
    except ShardDamage as error:
        what = f"{changed} in the cache, and cannot be fetched again: {error}"
        raise damage(what, f"Its file in the cache is {cached}") from None
    if not is_whole(content):
        remedy = f"The disk of the cache changes it: {cached}. Name another data.cache"
        raise damage(f"{changed}, also when fetched again", remedy)
    return content


def read_indexes(
    directory: str | os.PathLike[str], shards: Iterable[ShardInfo]
) -> list[IndexArray]:
    """`read_index` of each shard; those of a store are fetched several at once before."""
    files, wanted = files_at(directory), list(shards)
    if isinstance(files, CachedFiles):
        files.fetch_all([index_of(shard) for shard in wanted])
    return [read_index(files, shard) for shard in wanted]
