"""Which evaluated samples the model has seen before: the same sample or a duplicate of it.

Index files say it, by their keys and duplicate groups. Tars are read only where the model was
trained on a data set of another name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.data.index_file import IndexArray, read_indexes
from mmsa.data.manifest import Manifest, load_manifest
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.evaluation.inputs.same_content import same_content
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.inputs.trained_on import trained_manifest
from mmsa.lineage import training_data

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
    that they are still at `trained_shards`: packing again can move a sample to another split.
    Duplicates are then those of either packing; one that neither has together with a sample that
    both have is not found. In a data set of another name they are searched for equal contents.
    Raises `ShardDamage` as reading them does.
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
        if manifest is evaluated:
            seen_groups = records["group"]
        else:
            trained_all = _whole_records(directory, manifest)
            evaluated_all = _whole_records(shards, evaluated)
            seen_groups = _groups_with(evaluated_all, _members(trained_all, records["group"]))
    except UserError as error:
        return SeenBefore(None, str(error))
    ungrouped = (records["group"] == records["key_hash"]).all() and (groups == key_hashes).all()
    duplicates_known = "groups" in manifest.source or not ungrouped
    leaked = np.isin(key_hashes, records["key_hash"])
    if duplicates_known:
        leaked |= np.isin(groups, seen_groups)
    elif not leaked.any():
        return SeenBefore(None, "the shards were packed without looking for duplicates")
    return SeenBefore(leaked)


def _members(records: IndexArray, groups: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The key hashes of all samples of `groups`.

    With the numbers of the groups: each is the key hash of the group's first sample, which a
    protocol may have left out of the set.
    """
    return np.concatenate([records["key_hash"][np.isin(records["group"], groups)], groups])


def _groups_with(records: IndexArray, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The groups of another packing that contain one of `keys`.

    Its groups have other numbers where they gained or lost a first sample, so that two packings are
    compared by keys alone.
    """
    return np.concatenate([records["group"][np.isin(records["key_hash"], keys)], keys])


def seen_by_any(found: Sequence[SeenBefore]) -> SeenBefore:
    """What weights have seen that were trained on several data sets, one after the other.

    Unknown if it is unknown for one of them. `found` is in order: the run's own data, then that of
    the runs that it began from.
    """
    first, *earlier = found
    if first.leaked is None:
        return first
    leaked = first.leaked.copy()
    for one in earlier:
        if one.leaked is None:
            return SeenBefore(None, f"of a run that this one began from: {one.why_unknown}")
        leaked |= one.leaked
    return SeenBefore(leaked, by_content=any(one.by_content for one in found))


def seen_by(target: EvalTarget, facts: Sequence[SampleFacts]) -> SeenBefore:
    """Which samples of the split the model of `target` has been trained on or chosen by.

    Also by the runs that its run began from (`train.init_from`).
    """
    export = target.export
    keys = np.array([sample.key_hash for sample in facts], dtype=np.uint64)
    return seen_by_any(
        [
            seen_before(
                target.manifest,
                target.shards,
                target.split,
                groups_of(facts),
                keys,
                trained_digest=data.digest,
                trained_shards=data.shards,
            )
            for data in training_data(export.facts, export.config.data.shards)
        ]
    )


def count_seen(
    shards: str | os.PathLike[str], split: str, trained: Mapping[str, Any]
) -> tuple[int, str]:
    """(samples of a split of `shards` that other data has in its splits, why that is unknown).

    `trained` names the other data: `shards_digest`, and `shards`, where it was then. The splits are
    those of `seen_before`.
    """
    manifest = load_manifest(shards)
    if split not in manifest.splits:
        return 0, ""
    try:
        records = _records(shards, manifest, (split,))
    except UserError as error:
        return 0, str(error)
    found = seen_before(
        manifest,
        shards,
        split,
        records["group"],
        records["key_hash"],
        trained_digest=trained.get("shards_digest"),
        trained_shards=trained.get("shards"),
    )
    return (0, found.why_unknown) if found.leaked is None else (int(found.leaked.sum()), "")


def _whole_records(directory: str | os.PathLike[str], manifest: Manifest) -> IndexArray:
    """The records of all splits whose index is there: a copied set need not be whole."""
    found = []
    for split in manifest.splits:
        with suppress(UserError):
            found.append(_records(directory, manifest, (split,)))
    return np.concatenate(found)


def _records(
    directory: str | os.PathLike[str], manifest: Manifest, splits: tuple[str, ...]
) -> IndexArray:
    known = [manifest.splits[split] for split in splits if split in manifest.splits]
    tables = read_indexes(directory, (shard for split in known for shard in split.shards))
    if not tables:
        raise UserError(f"the shards have none of the splits {', '.join(splits)}")
    return np.concatenate(tables)
