"""Writing one tar and its index file, and reading both back at once.

Members are `KEY.jpg`, `KEY.txt` (UTF-8), `KEY.json` in this order, in plain ustar with fixed times
and owners: the same samples give the same bytes, and any WebDataset reader reads them. A sample
without an image or a text lacks that member.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.index_file import (
    INDEX_DTYPE,
    IndexArray,
    index_bytes,
    key_hash,
    missing_bits,
    missing_counts,
)
from mmsa.data.manifest import ShardInfo
from mmsa.data.members import tar_members
from shards.example import EncodedSample

MEMBERS = ("jpg", "txt", "json")


@dataclass(frozen=True)
class PackedSample:
    """One sample as it goes into a tar. `facts` is `KEY.json` without key, label and group.

    `text` or `image` is empty where the sample has none.
    """

    key: str
    label: str
    group: int  # key_hash of the first key of its duplicate group
    text: str
    image: bytes
    facts: dict[str, Any]

    @classmethod
    def of(cls, sample: EncodedSample, group: int, image: bytes) -> PackedSample:
        """`sample` of the duplicate group `group`, with its JPEG."""
        example = sample.example
        has_image = example.image_path is not None
        facts = {
            "source_id": example.source_id,
            "dataset": example.dataset,
            "width": sample.width if has_image else None,
            "height": sample.height if has_image else None,
            "text_label": example.text_label,
            "image_label": example.image_label,
            "votes": example.votes,
            "soft_label": example.soft,
        }
        known = {name: value for name, value in facts.items() if value is not None}
        return cls(example.key, example.label, group, example.text, image, known)

    def members(self) -> dict[str, bytes]:
        """Extension -> bytes, in the order of the tar."""
        content = {
            **self.facts,
            "key": self.key,
            "label": self.label,
            "group": f"{self.group:016x}",
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        contents = (self.image, self.text.encode("utf-8"), text.encode("utf-8"))
        named = zip(MEMBERS, contents, strict=True)
        return {extension: content for extension, content in named if content}

    def tar_bytes(self) -> bytes:
        """Its members with headers and padding, as they lie in a tar."""
        members = [(f"{self.key}.{extension}", data) for extension, data in self.members().items()]
        piece = b"".join(_member(name, data) for name, data in members)
        # Parsed as readers of shards do it: the index must not list what they would not find.
        assert tar_members(piece) == members, self.key
        return piece


def _member(name: str, content: bytes) -> bytes:
    # tarfile itself and not wds.TarWriter, which gives the same bytes (tested) but imports torch
    # and, by default, writes the time of day into an extra header per member. PAX is ustar for
    # every name that ustar has room for.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode, member.uname, member.gname = 0o644, "mmsa", "mmsa"
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return member.tobuf(tarfile.PAX_FORMAT) + content + padding


def write_shard(
    directory: Path, name: str, samples: Iterable[PackedSample], classes: Sequence[str]
) -> ShardInfo:
    """Write `NAME.tar` and `NAME.idx` into `directory`; one sample is in memory at a time.

    The finished tar is read back and compared with its index. A difference is a bug, and an
    assertion fails.
    """
    tar_path = directory / f"{name}.tar"
    index_path = directory / f"{name}.idx"
    records = _write_tar(tar_path, samples, classes)
    tar_sha256 = _read_back(tar_path, records)
    tar_bytes = tar_path.stat().st_size
    index = index_bytes(records, tar_bytes=tar_bytes, tar_sha256=tar_sha256)
    index_path.write_bytes(index)
    counts = Counter(records["label"].tolist())
    return ShardInfo(
        tar=tar_path.name,
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        index=index_path.name,
        index_sha256=hashlib.sha256(index).hexdigest(),
        num_samples=len(records),
        classes={label: counts[number] for number, label in enumerate(classes)},
        missing=missing_counts(records),
    )


def _write_tar(path: Path, samples: Iterable[PackedSample], classes: Sequence[str]) -> IndexArray:
    """Write the tar; returns its index records (N,)."""
    rows = []
    with path.open("wb") as file:
        for sample in samples:
            piece = sample.tar_bytes()
            row = {
                "offset": file.tell(),
                "key_hash": key_hash(sample.key),
                "group": sample.group,
                "length": len(piece),
                "crc32": zlib.crc32(piece),
                "text_length": len(sample.text),
                "label": classes.index(sample.label),
                "missing": missing_bits(has_text=bool(sample.text), has_image=bool(sample.image)),
            }
            rows.append(tuple(row[name] for name in INDEX_DTYPE.names or ()))
            file.write(piece)
        # The end of a tar: two empty blocks, padded to a full record.
        end = file.tell() + 2 * tarfile.BLOCKSIZE
        file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
    return np.array(rows, dtype=INDEX_DTYPE)


def _read_back(path: Path, records: IndexArray) -> str:
    """Check the tar at `path` against its index records; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number, record in enumerate(records):
            piece = file.read(int(record["length"]))
            assert zlib.crc32(piece) == record["crc32"], f"{path}: sample {number} reads back wrong"
            digest.update(piece)
        end = file.read()
    assert not any(end), f"{path} has more members than were written"
    digest.update(end)
    return digest.hexdigest()
