"""How many held-out samples of an assignment have a duplicate in a split seen before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Held-out split -> the splits whose twins make its score too good: what was trained and selected on
SEEN_BEFORE = {"val": ("train",), "test": ("train", "val")}


def twin_counts(split_of: Mapping[str, str], group_of: Mapping[str, int]) -> dict[str, Any]:
    """For val and test: its `samples`, and how many of them have a twin where they must not.

    The result for test: `{"samples": 450, "train": 80, "val": 12, "any": 85}`.
    """
    keys = sorted(split_of)
    groups = {
        split: np.array([group_of[key] for key in keys if split_of[key] == split], dtype=np.uint64)
        for split in ("train", "val", "test")
    }
    return twins_of_groups(groups)


def twins_of_groups(groups: Mapping[str, np.ndarray[Any, np.dtype[np.uint64]]]) -> dict[str, Any]:
    """As `twin_counts`, from the duplicate groups (n,) of each split's samples."""
    found: dict[str, Any] = {}
    for split, others in SEEN_BEFORE.items():
        if not len(groups.get(split, ())):
            continue
        anywhere = np.zeros(len(groups[split]), dtype=bool)
        counts = {"samples": len(groups[split])}
        for other in others:
            twin = np.isin(groups[split], groups.get(other, np.array([], dtype=np.uint64)))
            counts[other] = int(twin.sum())
            anywhere |= twin
        found[split] = {**counts, "any": int(anywhere.sum())}
    return found
