"""The shards of one split as arrays: a hundred thousand of them in about ten MiB.

The manifest's objects take about 2 KiB per shard, and every loader worker gets a copy of what the
reader keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmsa.data.index_file import index_size
from mmsa.data.manifest import MODALITIES, ShardInfo
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import CachedFiles, LocalFiles, found_sizes
from mmsa.errors import ShardDamage
from mmsa.foundation.hashed_random import IntArray
from mmsa.foundation.urls import joined

_DIGEST_BYTES = 32  # sha256


class _Names:
    """Strings in one block of UTF-8."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __getitem__(self, number: int) -> str:
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start : int(self._ends[number])].decode("utf-8")


class ShardTable:
    """The manifest's entries of S shards with C classes, by number."""

    def __init__(self, shards: Sequence[ShardInfo], classes: Sequence[str]) -> None:
        """`classes` are the manifest's; their order is that of the columns of `counts`."""
        self._classes = tuple(classes)
        self._tars = _Names([shard.tar for shard in shards])
        self._indexes = _Names([shard.index for shard in shards])
        self._tar_bytes = np.array([shard.tar_bytes for shard in shards], dtype=np.int64)
        self._num_samples = np.array([shard.num_samples for shard in shards], dtype=np.int64)
        # (S, 2) samples without each of `MODALITIES`; None where all samples have both.
        self._missing: np.ndarray[Any, np.dtype[np.int64]] | None = None
        if any(shard.missing for shard in shards):
            self._missing = np.array(
                [[shard.missing.get(name, 0) for name in MODALITIES] for shard in shards]
            )
        self._digests = np.frombuffer(
            b"".join(
                bytes.fromhex(shard.tar_sha256) + bytes.fromhex(shard.index_sha256)
                for shard in shards
            ),
            dtype=np.uint8,
        ).reshape(len(shards), 2 * _DIGEST_BYTES)
        # (S, C) samples of each class in each shard.
        self.counts: np.ndarray[Any, np.dtype[np.int64]] = np.array(
            [[shard.classes.get(name, 0) for name in self._classes] for shard in shards],
            dtype=np.int64,
        ).reshape(len(shards), len(self._classes))

    def __len__(self) -> int:
        return len(self._tar_bytes)

    def tar(self, number: int) -> str:
        """The file name of a shard's tar."""
        return self._tars[number]

    def __getitem__(self, number: int) -> ShardInfo:
        """The manifest's entry of a shard, created at each call and not validated again."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        digests = self._digests[number].tobytes()
        counts = zip(self._classes, self.counts[number].tolist(), strict=True)
        missing = {}
        if self._missing is not None:
            lacking = zip(MODALITIES, self._missing[number].tolist(), strict=True)
            missing = {name: count for name, count in lacking if count}
        return ShardInfo.model_construct(
            tar=self._tars[number],
            tar_bytes=int(self._tar_bytes[number]),
            tar_sha256=digests[:_DIGEST_BYTES].hex(),
            index=self._indexes[number],
            index_sha256=digests[_DIGEST_BYTES:].hex(),
            num_samples=int(self._num_samples[number]),
            classes=dict(counts),
            missing=missing,
        )

    def tar_file(self, number: int) -> Wanted:
        """The tar of a shard as a file of a store: name, bytes, digest."""
        digest = self._digests[number, :_DIGEST_BYTES].tobytes().hex()
        return Wanted(self._tars[number], int(self._tar_bytes[number]), digest)

    def index_file(self, number: int) -> Wanted:
        """The index of a shard in the same way."""
        digest = self._digests[number, _DIGEST_BYTES:].tobytes().hex()
        size = index_size(int(self._num_samples[number]))
        return Wanted(self._indexes[number], size, digest)

    def files(self, numbers: Iterable[int]) -> list[Wanted]:
        """Index and tar of each of these shards, the indexes first: they say where samples are."""
        wanted = list(numbers)
        return [*map(self.index_file, wanted), *map(self.tar_file, wanted)]

    def num_bytes(self, numbers: IntArray) -> int:
        """The size of the tars of these shards together."""
        return int(self._tar_bytes[numbers].sum())

    def bytes_with_index(self) -> IntArray:
        """(S,) the size of each tar and its index together."""
        return self._tar_bytes + index_size(0) + self._num_samples * (index_size(1) - index_size(0))

    def check_tars(self, files: LocalFiles | CachedFiles) -> None:
        """Check that each tar exists in `files` with its packed size.

        This finds a missing or truncated tar before hours of work reach it. The bytes are verified
        when samples are read. Takes a tenth of a second for 10,000 tars on a local disk, and one
        request for 1,000 of a store that can list. Raises `ShardDamage` for the first problem.
        """
        names = [self._tars[number] for number in range(len(self))]
        found = found_sizes(files, names)
        for name, expected in zip(names, self._tar_bytes.tolist(), strict=True):
            size = found.get(name, expected)  # not asked: found when it is fetched
            if size != expected:
                said = size if isinstance(size, str) else f"has {size} bytes"
                raise ShardDamage(
                    f"the shard {joined(files.location, name)} {said}; expected {expected}. "
                    "Restore it, or pack the data again",
                    shard=name,
                )

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[number] for number in range(len(self)))
