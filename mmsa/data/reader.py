"""Reads samples of one split by (shard, ordinal): one read each, with its checksum verified.

Only public formats are read: tar members are ustar headers and bytes. Nothing from a sample is
executed or unpickled.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from mmsa.data.index_file import INDEX_DTYPE, IndexArray, read_index
from mmsa.data.index_records import Record, check_records
from mmsa.data.loading.worker_position import record_position
from mmsa.data.manifest import Manifest
from mmsa.data.members import Fields
from mmsa.data.raw_sample import RawSample
from mmsa.data.sample_parser import Contradiction, SampleParser
from mmsa.data.shard_table import ShardTable
from mmsa.data.storage.early_reads import EarlyReads
from mmsa.data.storage.files import CachedFiles, files_at
from mmsa.data.storage.open_tars import OpenTars
from mmsa.errors import ShardDamage
from mmsa.foundation.urls import joined
from mmsa.labels import ClassMap

try:  # eight times as fast as zlib, but not built for every machine
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

_OPEN_INDEXES = 32  # index arrays kept per process, at least: 1.3 MB for shards of 1,000


class SplitReader:
    """Reads the samples of one split, except those of classes that are left out.

    `sizes` (S,) is the number of kept samples in each shard, known from the manifest alone. The
    object is pickled to loader workers, without its open files and indexes.
    """

    def __init__(
        self, directory: str | os.PathLike[str], manifest: Manifest, split: str, classes: ClassMap
    ) -> None:
        info = manifest.split(split)
        self.files = files_at(directory)
        self.is_cached = isinstance(self.files, CachedFiles)
        self.location = self.files.location  # a folder or a URL
        self.split = split
        self.shards = ShardTable(info.shards, manifest.classes)
        self._num_indexes = _OPEN_INDEXES
        self.num_classes = len(classes.names)
        self.missing = info.missing  # of all classes: modality -> samples without it
        self._packed_here = "fields" not in manifest.packing
        self._parser = SampleParser(
            Fields.of(manifest.packing, info.missing), manifest.classes, self._packed_here
        )
        self._max_characters = manifest.max_characters
        # Manifest class -> the model's label, -1 where samples of the class are left out.
        labels = [classes.label_of(name) for name in manifest.classes]
        self._labels = np.array([-1 if label is None else label for label in labels], dtype=int)
        self._labels_of: list[int] = self._labels.tolist()  # for one at a time
        self._leaves_out = bool((self._labels < 0).any())
        kept = {
            name for name, label in zip(manifest.classes, labels, strict=True) if label is not None
        }
        self.sizes = self.shards.counts[:, self._labels >= 0].sum(axis=1)  # (S,)
        # What an order depends on besides seed, epoch and window.
        self.identity = f"{manifest.digest}/{split}/{','.join(sorted(kept))}"
        self._indexes: OrderedDict[int, IndexArray] = OrderedDict()
        self._tars = OpenTars(self.files)
        self._early: EarlyReads | None = None

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def class_counts(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(C,) samples of each of the model's classes, from the manifest alone."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        kept = self._labels >= 0
        np.add.at(counts, self._labels[kept], self.shards.counts.sum(axis=0)[kept])
        return counts

    def keep_indexes(self, number: int) -> None:
        """Keep the index arrays of at least `number` shards in memory from now on."""
        self._num_indexes = max(self._num_indexes, number)

    def check_tars(self) -> None:
        """Check that each tar exists with its packed size; `ShardDamage` for the first problem."""
        self.shards.check_tars(self.files)

    def fetch_split(self) -> None:
        """Bring the whole split into the node's cache, which an evaluation reads in all places at
        once; does nothing for a folder that is read in place. Raises `UserError`."""
        if isinstance(self.files, CachedFiles):
            self.files.fetch_all(self.shards.files(range(len(self.shards))))

    def read_early(self, num_bytes: int) -> None:
        """Let `read_all` take up to `num_bytes` from the store itself, of samples whose tars are
        still on their way to the node's cache."""
        if isinstance(self.files, CachedFiles):
            self._early = EarlyReads(self.files, num_bytes)

    def at_step(self, name: str, step: int, shards: Collection[int] = ()) -> None:
        """Say that the loader process `name` begins `step`, which reads these `shards` alone.

        For a node's cache: tars of other shards are closed, so that they may be deleted.
        """
        if isinstance(self.files, CachedFiles):
            self._tars.close_others(shards)
            self.files.report_step(name, step, shards)

    def records(self, shard: int) -> IndexArray:
        """The index records (sizes[shard],) of the kept samples of a shard, in tar order."""
        if shard in self._indexes:
            self._indexes.move_to_end(shard)
            return self._indexes[shard]
        info = self.shards[shard]
        record_position(info.index)
        records = read_index(self.files, info)
        check_records(
            records, info, num_classes=len(self._labels), max_characters=self._max_characters
        )
        kept = records
        if self._leaves_out:
            kept = records[self._labels[records["label"]] >= 0]
        if len(kept) != self.sizes[shard]:
            raise ShardDamage(
                f"the index {info.index} counts {len(kept)} samples of the kept classes; "
                f"the manifest says {self.sizes[shard]}",
                shard=info.tar,
            )
        self._indexes[shard] = kept
        while len(self._indexes) > self._num_indexes:
            self._indexes.popitem(last=False)
        return kept

    def places(self) -> Iterator[tuple[int, int]]:
        """(shard, ordinal) of every sample, in the manifest's order."""
        return ((shard, row) for shard, size in enumerate(self.sizes) for row in range(size))

    def all_records(self) -> tuple[np.ndarray[Any, Any], IndexArray]:
        """((N, 2) int32 shard and ordinal, (N,) records) of the whole split, in the manifest's
        order: 48 bytes per sample."""
        tables = [self.records(shard) for shard in range(len(self.shards))]
        if not tables:
            return np.empty((0, 2), dtype=np.int32), np.empty(0, dtype=INDEX_DTYPE)
        places = np.empty((len(self), 2), dtype=np.int32)
        places[:, 0] = np.repeat(np.arange(len(tables)), self.sizes)
        places[:, 1] = np.concatenate([np.arange(size) for size in self.sizes])
        return places, np.concatenate(tables)

    @property
    def remedy(self) -> str:
        """What to do about a damaged sample: tars of other programs cannot be packed again here."""
        if self._packed_here:
            return "pack the data again"
        return (
            "leave it out: python -m shards index "
            f"{shlex.quote(self.location)} --overwrite --skip-bad, with the other options of "
            "the first time"
        )

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[RawSample]:
        """Read the samples at `places`, (shard, ordinal) each, in this order; raises as `read`."""
        records = [self._record(*place) for place in places]
        early = self._early_bytes(places, records)
        return [
            self._sample(
                *place,
                record,
                early[place] if place in early else self._pread(place[0], record),
            )
            for place, record in zip(places, records, strict=True)
        ]

    def _early_bytes(
        self, places: Sequence[tuple[int, int]], records: Sequence[Record]
    ) -> dict[tuple[int, int], bytes]:
        """Samples from the store itself, of tars that are still on their way to the cache."""
        if self._early is None or not self._early.left_bytes:
            return {}
        return self._early.read(
            {
                place: record.piece_of(self.shards.tar_file(place[0]))
                for place, record in zip(places, records, strict=True)
                if not self._tars.name(place[0])
            }
        )

    def read(self, shard: int, ordinal: int) -> RawSample:
        """Read one sample. Raises `ShardDamage`, with shard and key, if it is not as packed."""
        record = self._record(shard, ordinal)
        return self._sample(shard, ordinal, record, self._pread(shard, record))

    def _tar_name(self, shard: int) -> str:
        return self._tars.name(shard) or self.shards.tar(shard)

    def _record(self, shard: int, ordinal: int) -> Record:
        # `item` converts all fields at once, in the time that numpy takes to access one.
        return Record._make(self.records(shard)[ordinal].item())

    def _sample(self, shard: int, ordinal: int, record: Record, content: bytes) -> RawSample:
        if len(content) < record.length:
            raise self._damage(shard, ordinal, "the tar ends before the sample does")
        if crc32(content) != record.crc32:
            raise self._damage(shard, ordinal, "its bytes do not match the index (crc32)")
        try:
            key, image, text, json = self._parser.parse(record, content)
        except Contradiction as error:
            raise self._damage(shard, ordinal, str(error), error.key) from None
        except (ValueError, OverflowError, RecursionError, tarfile.TarError) as error:
            raise self._damage(shard, ordinal, str(error) or type(error).__name__) from None
        return RawSample(
            key=key,
            shard=self._tar_name(shard),
            image=b"" if image is None else image,
            text=text or "",
            json=json,
            label=self._labels_of[record.label],
            key_hash=record.key_hash,
            has_text=text is not None,
            has_image=image is not None,
        )

    def _pread(self, shard: int, record: Record) -> bytes:
        """The bytes of a sample; fewer where the tar ends before it does."""
        tar = self._tar_name(shard)
        record_position(tar)
        try:
            descriptor = self._tars.descriptor(shard, lambda: self.shards.tar_file(shard))
        except OSError as error:
            raise ShardDamage(
                f"the shard {joined(self.location, tar)} cannot be opened ({error.strerror}). "
                f"Restore it, or {self.remedy}",
                shard=tar,
            ) from None
        try:
            return os.pread(descriptor, record.length, record.offset)
        except OSError as error:
            raise ShardDamage(
                f"the shard {tar} cannot be read at byte {record.offset} ({error.strerror})",
                shard=tar,
            ) from None

    def _damage(self, shard: int, ordinal: int, what: str, key: str | None = None) -> ShardDamage:
        tar = self.shards.tar(shard)
        key = key or self._key_in_tar(shard, ordinal)
        return ShardDamage(
            f"the shard {joined(self.location, tar)} is damaged at sample {ordinal}"
            f"{f' ({key})' if key else ''}: {what}. {self._restore(shard)}",
            shard=tar,
            key=key,
        )

    def _restore(self, shard: int) -> str:
        if isinstance(self.files, CachedFiles):
            # It was right when it was fetched.
            cached = self.files.cache.path(self.shards.tar_file(shard).sha256)
            return f"The disk of the cache changed it: delete {cached}, and it is fetched again"
        return f"Restore it, or {self.remedy}"

    def _key_in_tar(self, shard: int, ordinal: int) -> str | None:
        """The key in the damaged sample's first tar header, if it is still readable."""
        header = self._record(shard, ordinal)._replace(length=100)
        name = self._pread(shard, header).split(b"\0")[0].decode("utf-8", "replace")
        key = name.partition(".")[0]
        return key if key and key.isprintable() else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict()}
