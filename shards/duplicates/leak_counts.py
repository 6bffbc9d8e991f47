"""How many held-out samples of an assignment have a duplicate in a split seen before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Held-out split -> the splits whose duplicates make its score optimistically biased: those that
# the model was trained and selected on.
SEEN_BEFORE = {"val": ("train",), "test": ("train", "val")}

Groups = np.ndarray[Any, np.dtype[np.uint64]]


def leak_counts(split_of: Mapping[str, str], group_of: Mapping[str, int]) -> dict[str, Any]:
    """For val and test: its `samples`, and how many have a duplicate in each split seen before.

    The result for test: `{"samples": 450, "train": 80, "val": 12, "any": 85}`.
    """
    keys = sorted(split_of)
    groups = {
        split: np.array([group_of[key] for key in keys if split_of[key] == split], dtype=np.uint64)
        for split in ("train", "val", "test")
    }
    return leak_counts_of_groups(groups)


def leak_counts_of_groups(groups: Mapping[str, Groups]) -> dict[str, Any]:
    """As `leak_counts`, from the duplicate groups (n,) of each split's samples."""
    found: dict[str, Any] = {}
    for split, seen in SEEN_BEFORE.items():
        if not len(groups.get(split, ())):
            continue
        anywhere = np.zeros(len(groups[split]), dtype=bool)
        counts = {"samples": len(groups[split])}
        for other in seen:
            leaked = np.isin(groups[split], groups.get(other, np.array([], dtype=np.uint64)))
            counts[other] = int(leaked.sum())
            anywhere |= leaked
        found[split] = {**counts, "any": int(anywhere.sum())}
    return found
