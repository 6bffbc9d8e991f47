"""Which evaluated samples the model has seen before: the same sample or a duplicate of it.

Index files say it, by their keys and duplicate groups. Tars are read only where the model was
trained on a data set of another name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa.data.index_file import IndexArray, read_index
from mmsa.data.manifest import Manifest
from mmsa.errors import UserError
from mmsa.evaluation.inputs.same_content import same_content
from mmsa.evaluation.inputs.trained_on import trained_manifest

# Evaluated split -> the splits that training and the choice of the best export used.
_SEEN_BEFORE = {"val": ("train",), "test": ("train", "val")}


@dataclass(frozen=True)
class SeenBefore:
    """`leaked` (N,), in the order of the given groups; None if unknown, with the reason.

    With `by_content` the training data is another set, in which only equal texts and pictures were
    looked for.
    """

    leaked: NDArray[np.bool_] | None
    why_unknown: str = ""
    by_content: bool = False


def seen_before(
    evaluated: Manifest,
    shards: str | os.PathLike[str],
    split: str,
    groups: NDArray[np.uint64],
    key_hashes: NDArray[np.uint64],
    *,
    trained_digest: object,
    trained_shards: str | os.PathLike[str] | None,
) -> SeenBefore:
    """Look for the samples (`groups` and `key_hashes`, (N,)) in the splits used for training.

    If the model was trained on other shards than the evaluated ones, these are searched, provided
    that they are still at `trained_shards`: packing again can move a sample to another split. In a
    data set of another name they are searched for equal contents. Raises `ShardDamage` as reading
    them does.
    """
    earlier_splits = _SEEN_BEFORE.get(split)
    if earlier_splits is None:
        return SeenBefore(None, f"the model was trained on the split '{split}'")
    manifest, directory = evaluated, shards
    if trained_digest is not None and trained_digest != evaluated.digest:
        found = trained_manifest(trained_shards, trained_digest)
        if found is None:
            return SeenBefore(
                None, "the model was trained on other shards, which are not at their place any more"
            )
        manifest, directory = found, str(trained_shards)
    try:
        if manifest.dataset != evaluated.dataset:
            there = [name for name in earlier_splits if name in manifest.splits]
            same = same_content((shards, evaluated, [split]), (directory, manifest, there))
            return SeenBefore(np.isin(key_hashes, same), by_content=True)
        records = _records(directory, manifest, earlier_splits)
    except UserError as error:
        return SeenBefore(None, str(error))
    ungrouped = (records["group"] == records["key_hash"]).all() and (groups == key_hashes).all()
    duplicates_known = "groups" in manifest.source or not ungrouped
    leaked = np.isin(key_hashes, records["key_hash"])
    if duplicates_known:
        leaked |= np.isin(groups, records["group"])
    elif not leaked.any():
        return SeenBefore(None, "the shards were packed without looking for duplicates")
    return SeenBefore(leaked)


def _records(
    directory: str | os.PathLike[str], manifest: Manifest, splits: tuple[str, ...]
) -> IndexArray:
    tables = [
        read_index(directory, shard)
        for split in splits
        if split in manifest.splits
        for shard in manifest.splits[split].shards
    ]
    if not tables:
        raise UserError(f"the shards have none of the splits {', '.join(splits)}")
    return np.concatenate(tables)
