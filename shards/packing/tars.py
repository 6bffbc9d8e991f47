"""Writing one tar and its index file, and reading both back at once.

Members are `KEY.jpg`, `KEY.txt` (UTF-8), `KEY.json` in this order, in plain ustar with fixed times
and owners: the same samples give the same bytes, and any WebDataset reader reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.manifest import INDEX_DTYPE, IndexArray, ShardInfo, index_bytes, key_hash
from mmsa.data.members import tar_members

MEMBERS = ("jpg", "txt", "json")


@dataclass(frozen=True)
class PackedSample:
    """One sample as it goes into a tar. `facts` is what `KEY.json` holds beside key and label."""

    key: str
    label: str
    group: int  # key_hash of the first key of its duplicate group
    text: str
    image: bytes
    facts: dict[str, Any]

    def members(self) -> dict[str, bytes]:
        """Extension -> bytes, in the order of the tar."""
        content = {
            **self.facts,
            "key": self.key,
            "label": self.label,
            "group": f"{self.group:016x}",
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        contents = (self.image, self.text.encode("utf-8"), canonical.encode("utf-8"))
        return dict(zip(MEMBERS, contents, strict=True))


@dataclass(frozen=True)
class _Written:
    """What was meant to be written: compared with what stands in the tar afterwards."""

    key: str
    label: str
    group: int
    text_length: int
    crc32: int  # of the members' contents joined, without headers
    end: int  # of its last member with padding, bytes from the start of the tar


def write_shard(
    directory: Path, name: str, samples: Iterable[PackedSample], classes: Sequence[str]
) -> ShardInfo:
    """Write `NAME.tar` and `NAME.idx` into `directory`; one sample is in memory at a time.

    The index is built from what is read back from the finished tar. Where that differs from what
    was given, the mistake is ours and an assertion fails.
    """
    tar_path = directory / f"{name}.tar"
    index_path = directory / f"{name}.idx"
    written = _write_tar(tar_path, samples)
    records = _index_of(tar_path, written, classes)
    tar_sha256 = _sha256(tar_path)
    tar_bytes = tar_path.stat().st_size
    index = index_bytes(records, tar_bytes=tar_bytes, tar_sha256=tar_sha256)
    index_path.write_bytes(index)
    counts = Counter(sample.label for sample in written)
    return ShardInfo(
        tar=tar_path.name,
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        index=index_path.name,
        index_sha256=hashlib.sha256(index).hexdigest(),
        num_samples=len(written),
        classes={label: counts[label] for label in classes},
    )


def _write_tar(path: Path, samples: Iterable[PackedSample]) -> list[_Written]:
    # tarfile itself and not wds.TarWriter, which gives the same bytes (tested) but imports torch
    # and, by default, writes the time of day into an extra header per member. PAX is ustar for
    # every name that ustar has room for.
    written: list[_Written] = []
    with (
        path.open("wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for sample in samples:
            crc32 = 0
            for extension, content in sample.members().items():
                member = tarfile.TarInfo(f"{sample.key}.{extension}")
                member.size = len(content)
                member.mode, member.uname, member.gname = 0o644, "mmsa", "mmsa"
                tar.addfile(member, io.BytesIO(content))
                crc32 = zlib.crc32(content, crc32)
            text_length = len(sample.text)
            written.append(
                _Written(sample.key, sample.label, sample.group, text_length, crc32, file.tell())
            )
    return written


def _index_of(path: Path, written: list[_Written], classes: Sequence[str]) -> IndexArray:
    """Read the tar at `path` back and build its records (N,), checking each against `written`."""
    records = np.zeros(len(written), dtype=INDEX_DTYPE)
    offset = 0
    with path.open("rb") as file:
        for sample, record in zip(written, records, strict=True):
            piece = file.read(sample.end - offset)
            assert len(piece) == sample.end - offset, f"{path} ends before {sample.key}"
            # Parsed as readers of shards do it: what they would not find is not in the index.
            crc32 = 0
            names = []
            for name, content in tar_members(piece):
                names.append(name)
                crc32 = zlib.crc32(content, crc32)
            assert names == [f"{sample.key}.{extension}" for extension in MEMBERS], (path, names)
            assert crc32 == sample.crc32, f"{path}: {sample.key} reads back differently"
            record["offset"] = offset
            record["length"] = len(piece)
            record["crc32"] = zlib.crc32(piece)
            record["key_hash"] = key_hash(sample.key)
            record["group"] = sample.group
            record["text_length"] = sample.text_length
            record["label"] = classes.index(sample.label)
            offset = sample.end
        assert not any(file.read()), f"{path} has more members than were written"
    return records


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
