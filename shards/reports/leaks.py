"""How many held-out samples of a packed set have a duplicate in a split seen before."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.index_file import IndexArray, key_hash, read_indexes
from mmsa.data.manifest import Manifest, ShardInfo, load_manifest
from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import files_at
from mmsa.errors import ShardDamage, UserError
from mmsa.foundation.urls import joined
from shards.duplicates.leak_counts import SEEN_BEFORE, leak_counts_of_groups


@dataclass(frozen=True)
class Leak:
    """A held-out sample, and the splits seen before that have duplicates of it."""

    key: str
    split: str
    group: str
    twins_in: tuple[str, ...]


@dataclass(frozen=True)
class LeakReport:
    """`counts` as from `leak_counts`; `by_class`: split -> class -> leaked samples."""

    manifest: Manifest
    counts: dict[str, Any]
    by_class: dict[str, dict[str, int]]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "dataset": self.manifest.dataset,
            "protocol": self.manifest.protocol.model_dump(mode="json"),
            "digest": self.manifest.digest,
            "leaks": self.counts,
            "classes": self.by_class,
        }


def leak_report(directory: Path | str) -> LeakReport:
    """Count the leaks of the packed set in `directory`, from its manifest and indexes alone.

    Raises `UserError` where it is not a packed set or was packed without a search for duplicates,
    and `ShardDamage` where an index is damaged.
    """
    manifest = load_manifest(directory)
    records = _records(directory, manifest)
    groups = {split: array["group"] for split, array in records.items()}
    alone = all(bool((array["group"] == array["key_hash"]).all()) for array in records.values())
    if alone and "groups" not in manifest.source:
        if manifest.protocol.name == "indexed":
            raise UserError(
                f"the tars of {directory} were indexed and their samples not compared, so leaks "
                "cannot be counted. Packing from the raw data compares them"
            )
        raise UserError(
            f"{directory} was packed without a search for duplicates: each sample is its own "
            "group, so leaks cannot be counted. Pack the raw data again with this version"
        )
    by_class: dict[str, dict[str, int]] = {}
    for split, leaked in _leaked(groups).items():
        numbers = np.bincount(records[split]["label"][leaked], minlength=len(manifest.classes))
        by_class[split] = dict(zip(manifest.classes, numbers.tolist(), strict=True))
    return LeakReport(manifest, leak_counts_of_groups(groups), by_class)


def _records(directory: Path | str, manifest: Manifest) -> dict[str, IndexArray]:
    return {
        name: np.concatenate(read_indexes(directory, split.shards))
        for name, split in manifest.splits.items()
        if split.shards
    }


def _leaked(groups: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Held-out split -> whether each of its samples has a duplicate in a split seen before."""
    nothing = np.array([], dtype=np.uint64)
    return {
        split: np.isin(groups[split], np.concatenate([groups.get(o, nothing) for o in others]))
        for split, others in SEEN_BEFORE.items()
        if split in groups
    }


def list_leaks(directory: Path | str) -> list[Leak]:
    """Every leaked sample, by split and packed order; reads the tars of shards that have some."""
    manifest = load_manifest(directory)
    indexes = {
        name: list(zip(split.shards, read_indexes(directory, split.shards), strict=True))
        for name, split in manifest.splits.items()
    }
    members = {
        name: {int(group) for _, records in shards for group in records["group"]}
        for name, shards in indexes.items()
    }
    found: list[Leak] = []
    for split, others in SEEN_BEFORE.items():
        for shard, records in indexes.get(split, []):
            duplicates_in = [
                tuple(o for o in others if int(group) in members.get(o, ()))
                for group in records["group"]
            ]
            if not any(duplicates_in):
                continue
            keys = _keys(directory, shard, records["key_hash"])
            for key, group, twins_in in zip(keys, records["group"], duplicates_in, strict=True):
                if twins_in:
                    found.append(Leak(key, split, f"{int(group):016x}", twins_in))
    return found


def _keys(directory: Path | str, shard: ShardInfo, hashes: np.ndarray[Any, Any]) -> list[str]:
    """The keys of the samples of `shard`, in order, from the names of its members."""
    path = joined(directory, shard.tar)
    wanted = Wanted(shard.tar, shard.tar_bytes, shard.tar_sha256)
    try:
        with (
            open(files_at(directory).open_tar(wanted), "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            names = [member.name for member in tar if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise ShardDamage(f"{path} cannot be read as a tar ({error})", shard=shard.tar) from None
    keys = list(dict.fromkeys(name.split(".", 1)[0] for name in names))
    if [key_hash(key) for key in keys] != [int(number) for number in hashes]:
        raise ShardDamage(f"{path} has other keys than its index", shard=shard.tar)
    return keys
