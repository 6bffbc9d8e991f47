"""Single samples from a store, before their shards are in the node's cache.

The samples of a step lie in all shards of their window, so the first batch would wait for the
transfer of the whole window. Until an allowance is used up, its samples come from the store by
themselves, all of a batch at once. These bytes are sent twice, which is why there is an allowance.

The digest of a shard is known once it is whole, so such a sample is checked by the index alone,
whose own digest is in the manifest: it has the checksum of each sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from zlib import crc32

from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import CachedFiles
from mmsa.data.storage.sources import StoreError

_PATIENCE_S = 10.0  # what takes longer is left to the transfer of the whole shard
_Place = TypeVar("_Place")


@dataclass(frozen=True)
class Piece:
    """The bytes of a sample in its tar, and their checksum."""

    tar: Wanted
    offset: int
    length: int
    crc32: int


@dataclass
class EarlyReads:
    """Reads up to `left_bytes` of samples from the store of `files`. Picklable."""

    files: CachedFiles
    left_bytes: int

    def read(self, pieces: Mapping[_Place, Piece]) -> dict[_Place, bytes]:
        """The bytes of those `pieces` whose tars are not in the cache, by the same names.

        None of them if they are more than what is left: a batch that has to wait for one of its
        shards gains nothing by the others. What a store refuses, or answers with other bytes, is
        left out, and nothing is read in this way afterwards: the transfer of the shard tries again,
        and says what is wrong.
        """
        cache = self.files.cache
        away = {
            digest
            for digest in {piece.tar.sha256 for piece in pieces.values()}
            if not cache.path(digest).exists()
        }
        asked = {place: piece for place, piece in pieces.items() if piece.tar.sha256 in away}
        num_bytes = sum(piece.length for piece in asked.values())
        if not asked:
            return {}
        if num_bytes > self.left_bytes:
            self.left_bytes = 0
            return {}
        self.left_bytes -= num_bytes
        ranges = [(piece.tar.name, piece.offset, piece.length) for piece in asked.values()]
        try:
            contents = self.files.store.read_ranges(ranges, timeout_s=_PATIENCE_S)
        except StoreError:
            self.left_bytes = 0
            return {}
        found = {
            place: content
            for (place, piece), content in zip(asked.items(), contents, strict=True)
            if len(content) == piece.length and crc32(content) == piece.crc32
        }
        if len(found) < len(asked):
            self.left_bytes = 0
        return found
