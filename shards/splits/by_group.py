"""Splits and folds of duplicate groups: pure arithmetic that never divides a group.

A group is a sequence of (key, label), sorted by key. Where every group has one sample, the split is
that of `shards.splits.by_hash.split_by_hash`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from shards.splits.by_hash import SPLITS, split_counts

Group = Sequence[tuple[str, str]]
_HELD_OUT = ("test", "val")  # filled in this order


def split_groups(groups: Sequence[Group], *, seed: int, ratios: Mapping[str, int]) -> list[str]:
    """The split of each of `groups`, stratified by label as well as undivided groups allow.

    Targets are the counts of `split_counts` for each label. The result guarantees:

    - val and test have at most their target of each label;
    - where a label has at least as many samples without duplicates as the targets of val and test
      together, val and test have exactly their targets of it;
    - a held-out split lacks fewer samples of a label than the smallest one-label group of that
      label in train has.

    A hash of the seed and the first key sends groups of two and more to a split, in proportion to
    `ratios`; those that do not fit there, or are more than 1 % of a held-out split, go to train.
    Then samples without duplicates fill val and test. Where samples are still missing, groups of
    train that fit are moved there, smallest first. Where `ratios` has no train, the groups that are
    left go to the held-out split that lacks most, and may pass its target.
    """
    counts = [Counter(label for _, label in group) for group in groups]
    needed = _targets(counts, ratios)
    sizes = {split: sum(needed[split].values()) for split in _HELD_OUT}
    split_of = ["train"] * len(groups)

    def put(number: int, split: str) -> bool:
        count = counts[number]
        if any(count[label] > needed[split][label] for label in count):
            return False
        needed[split].subtract(count)
        split_of[number] = split
        return True

    ranked = sorted(range(len(groups)), key=lambda i: (-len(groups[i]), _rank(groups[i], seed)))
    duplicates = [number for number in ranked if len(groups[number]) > 1]
    for number in duplicates:
        drawn = _drawn_split(groups[number], seed, ratios)
        if drawn in _HELD_OUT and len(groups[number]) * 100 <= sizes[drawn]:
            put(number, drawn)
    for number in ranked[len(duplicates) :]:
        _ = put(number, "test") or put(number, "val")
    for number in reversed(duplicates):
        if split_of[number] == "train":
            _ = put(number, "test") or put(number, "val")
    if not ratios["train"]:
        _hold_out_the_rest(counts, needed, split_of, ratios)
    return split_of


def _hold_out_the_rest(
    counts: Sequence[Counter[str]],
    needed: Mapping[str, Counter[str]],
    split_of: list[str],
    ratios: Mapping[str, int],
) -> None:
    """Move what is in train to the held-out split of `ratios` that lacks most, in order."""
    splits = [split for split in _HELD_OUT if ratios[split]]
    for number, split in enumerate(split_of):
        if split == "train":
            chosen = max(splits, key=lambda name: needed[name].total())
            needed[chosen].subtract(counts[number])
            split_of[number] = chosen


def _targets(counts: Sequence[Counter[str]], ratios: Mapping[str, int]) -> dict[str, Counter[str]]:
    totals: Counter[str] = Counter()
    for count in counts:
        totals.update(count)
    targets: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for label, total in totals.items():
        for split, number in split_counts(total, ratios).items():
            targets[split][label] = number
    return targets


def _rank(group: Group, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group[0][0]}".encode()).digest()


def _drawn_split(group: Group, seed: int, ratios: Mapping[str, int]) -> str:
    """A split, drawn from the hash of the group in proportion to `ratios`."""
    digest = hashlib.sha256(f"split:{seed}:{group[0][0]}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "little") * sum(ratios[split] for split in SPLITS) >> 64
    for split in SPLITS:
        if drawn < ratios[split]:
            return split
        drawn -= ratios[split]
    raise AssertionError(drawn)


def fold_groups(groups: Sequence[Group], *, seed: int, num_folds: int) -> list[int]:
    """The fold, 0 to `num_folds` - 1, of each of `groups`.

    Groups go, largest first, where their labels are rarest so far. Where all groups are of one
    label each, folds differ by at most the largest group in their number of any label; by at most
    one where no sample has a duplicate.
    """
    counts = [Counter(label for _, label in group) for group in groups]
    filled: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    sizes = [0] * num_folds
    fold_of = [0] * len(groups)
    ranked = sorted(range(len(groups)), key=lambda i: (-len(groups[i]), _rank(groups[i], seed)))
    for number in ranked:
        count = counts[number]

        def load(fold: int, count: Counter[str] = count) -> tuple[int, int, int]:
            same = sum(count[label] * filled[fold][label] for label in count)
            return same, sizes[fold], fold

        fold = min(range(num_folds), key=load)
        fold_of[number] = fold
        filled[fold].update(count)
        sizes[fold] += len(groups[number])
    return fold_of
