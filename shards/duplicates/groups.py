"""Duplicate groups: samples whose texts or images are duplicates, joined transitively."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mmsa.data.index_file import key_hash
from shards.duplicates.images import NEAR_BITS, image_pairs
from shards.duplicates.texts import MIN_CHARS, text_pairs
from shards.example import EncodedSample

# The rule, for the manifest. Changing any of it makes a new version of the protocol `clean`.
GROUP_RULE = {"picture_bits": NEAR_BITS, "text_words_percent": 80, "text_min_chars": MIN_CHARS}

_SHOWN_GROUPS = 10
_SHOWN_CONFLICTS = 100  # listed in the manifest; its counts are of all
_SHOWN_KEYS = 10


def find_groups(samples: Sequence[EncodedSample]) -> list[list[EncodedSample]]:
    """All samples in groups of duplicates; most groups hold one sample.

    Groups are ordered by their first key, and samples in a group by key, whatever the order of
    `samples`. An empty `image_hash` matches nothing.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    parent = list(range(len(ordered)))
    _join(parent, text_pairs([sample.example.text for sample in ordered]))
    _join(parent, image_pairs([bytes.fromhex(sample.image_hash) for sample in ordered]))
    groups: dict[int, list[EncodedSample]] = {}
    for position, sample in enumerate(ordered):
        groups.setdefault(_root(parent, position), []).append(sample)
    return sorted(groups.values(), key=lambda group: group[0].key)


def _root(parent: list[int], position: int) -> int:
    while parent[position] != position:
        parent[position] = parent[parent[position]]
        position = parent[position]
    return position


def _join(parent: list[int], pairs: Iterable[tuple[int, int]]) -> None:
    for one, other in pairs:
        low, high = sorted((_root(parent, one), _root(parent, other)))
        parent[high] = low


def group_ids(groups: Iterable[Sequence[EncodedSample]]) -> dict[str, int]:
    """Key -> number of its group: the hash of the group's first key (docs/shard-format.md)."""
    ids: dict[str, int] = {}
    for group in groups:
        number = key_hash(group[0].key)
        ids.update((sample.key, number) for sample in group)
    return ids


def group_facts(groups: Sequence[Sequence[EncodedSample]]) -> dict[str, Any]:
    """Counts of groups of two and more, the largest of them, and those whose labels conflict.

    The 10 largest and the 100 largest conflicting groups are listed, at most 10 keys of each.
    """
    duplicates = [group for group in groups if len(group) > 1]
    duplicates.sort(key=lambda group: (-len(group), group[0].key))
    conflicts = [group for group in duplicates if len({s.example.label for s in group}) > 1]
    return {
        "groups": len(duplicates),
        "samples_in_groups": sum(map(len, duplicates)),
        "largest": [_listed(group) for group in duplicates[:_SHOWN_GROUPS]],
        "conflicting_groups": len(conflicts),
        "samples_in_conflicting_groups": sum(map(len, conflicts)),
        "conflicting": [_listed(group) for group in conflicts[:_SHOWN_CONFLICTS]],
    }


def _listed(group: Sequence[EncodedSample]) -> dict[str, Any]:
    return {
        "group": f"{key_hash(group[0].key):016x}",
        "samples": len(group),
        "classes": dict(sorted(Counter(sample.example.label for sample in group).items())),
        "keys": [sample.key for sample in group[:_SHOWN_KEYS]],
    }
