"""Duplicate groups: samples whose texts or pictures are twins, joined transitively."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmsa.data.manifest import key_hash
from shards.duplicates.pictures import NEAR_BITS, image_hash, image_pairs
from shards.duplicates.texts import MIN_CHARS, text_pairs

__all__ = ["Candidate", "find_groups", "group_facts", "group_ids", "image_hash"]

# What the manifest says of the rule; a change of any of it is a new version of `clean`.
GROUP_RULE = {"picture_bits": NEAR_BITS, "text_words_percent": 80, "text_min_chars": MIN_CHARS}

_SHOWN_GROUPS = 10
_SHOWN_CONFLICTS = 100  # the list stands in the manifest; the counts beside it are of all
_SHOWN_KEYS = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A usable sample before it has a split: all that a split may depend on.

    `label` is the class name, the two others are the labels of the parts before the label rule (""
    where a source has none). `image_hash` is `image_hash(picture)`; empty links to nothing.
    """

    key: str
    source_id: str
    label: str
    text_label: str
    image_label: str
    text: str
    image_hash: bytes


def find_groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """All samples as groups of twins, most are of one; independent of the order of `candidates`.

    Groups are ordered by their first key, and samples in a group by key.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.key)
    parent = list(range(len(ordered)))
    _join(parent, text_pairs([candidate.text for candidate in ordered]))
    _join(parent, image_pairs([candidate.image_hash for candidate in ordered]))
    groups: dict[int, list[Candidate]] = {}
    for position, candidate in enumerate(ordered):
        groups.setdefault(_root(parent, position), []).append(candidate)
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


def group_ids(groups: Iterable[Sequence[Candidate]]) -> dict[str, int]:
    """Key -> number of its group as docs/shard-format.md defines it: of its first key, the hash."""
    ids: dict[str, int] = {}
    for group in groups:
        number = key_hash(group[0].key)
        ids.update((candidate.key, number) for candidate in group)
    return ids


def group_facts(groups: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
    """Counts of groups of two and more, the largest of them, and those whose labels conflict.

    The 10 largest and the 100 largest conflicting groups are listed, at most 10 keys of each.
    """
    twins = sorted((group for group in groups if len(group) > 1), key=lambda g: (-len(g), g[0].key))
    conflicts = [group for group in twins if len({c.label for c in group}) > 1]
    return {
        "groups": len(twins),
        "samples_in_groups": sum(map(len, twins)),
        "largest": [_listed(group) for group in twins[:_SHOWN_GROUPS]],
        "conflicting_groups": len(conflicts),
        "samples_in_conflicting_groups": sum(map(len, conflicts)),
        "conflicting": [_listed(group) for group in conflicts[:_SHOWN_CONFLICTS]],
    }


def _listed(group: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "group": f"{key_hash(group[0].key):016x}",
        "samples": len(group),
        "classes": dict(sorted(Counter(candidate.label for candidate in group).items())),
        "keys": [candidate.key for candidate in group[:_SHOWN_KEYS]],
    }
