"""One record of an index, and whether all of them agree with their tar and the manifest."""

from __future__ import annotations

from typing import NamedTuple

from mmsa.data.index_file import INDEX_DTYPE, IndexArray
from mmsa.data.manifest import ShardInfo
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.early_reads import Piece
from mmsa.errors import ShardDamage


class Record(NamedTuple):
    """A record of the index; fields in the order of `INDEX_DTYPE`."""

    offset: int
    key_hash: int
    group: int
    length: int
    crc32: int
    text_length: int
    label: int
    missing: int

    def piece_of(self, tar: Wanted) -> Piece:
        """Where the sample's bytes are in `tar`, for reading them alone."""
        return Piece(tar, self.offset, self.length, self.crc32)


assert Record._fields == INDEX_DTYPE.names


def check_records(
    records: IndexArray, info: ShardInfo, *, num_classes: int, max_characters: int
) -> None:
    """Check all `records` of the shard `info` in a set with `num_classes` classes, whose texts have
    at most `max_characters`. Raises `ShardDamage`."""
    if len(records) and int(records["label"].max()) >= num_classes:
        raise ShardDamage(
            f"the index {info.index} has labels that the manifest does not name", shard=info.tar
        )
    # Not offset + length, an unsigned sum that could wrap around to a valid offset.
    offsets = records["offset"]
    beyond = offsets > info.tar_bytes
    if beyond.any() or (records["length"] > info.tar_bytes - offsets).any():
        raise ShardDamage(
            f"the index {info.index} points past the end of {info.tar}. Pack the data again",
            shard=info.tar,
        )
    longest = int(records["text_length"].max()) if len(records) else 0
    if longest > max_characters:
        place = int(records["text_length"].argmax())
        raise ShardDamage(
            f"{info.tar} has a text of {longest:,} characters (sample {place}); at most "
            f"{max_characters:,} are read. Pack or index the data again without it, or "
            f"with --max-characters {longest}",
            shard=info.tar,
        )
