import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shards.splits.by_group import Group, fold_groups, split_groups
from shards.splits.by_hash import SPLITS, split_by_hash, split_counts

RATIOS = {"train": 8, "val": 1, "test": 1}


@st.composite
def grouped(draw: st.DrawFn, *, max_size: int = 6) -> list[Group]:
    """Groups of samples of three labels; most are of one sample."""
    sizes = draw(st.lists(st.sampled_from([1, 1, 1, *range(2, max_size + 1)]), max_size=80))
    groups: list[Group] = []
    number = 0
    for size in sizes:
        labels = draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size))
        groups.append([(f"k-{number + i:04}", label) for i, label in enumerate(labels)])
        number += size
    return groups


ratios = st.builds(
    lambda train, val, test: {"train": train, "val": val, "test": test},
    st.integers(1, 9),
    st.integers(0, 4),
    st.integers(0, 4),
)


def counts_of(groups: list[Group], split_of: list[str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for group, split in zip(groups, split_of, strict=True):
        counts[split].update(label for _, label in group)
    return counts


@given(grouped(), ratios, st.integers(0, 3))
def test_the_stated_bounds_hold(groups: list[Group], shares: dict[str, int], seed: int) -> None:
    split_of = split_groups(groups, seed=seed, ratios=shares)
    counts = counts_of(groups, split_of)
    labels = Counter(label for group in groups for _, label in group)
    singles = Counter(group[0][1] for group in groups if len(group) == 1)
    for label, total in labels.items():
        target = split_counts(total, shares)
        exact = singles[label] >= target["val"] + target["test"]
        in_train = [
            len(group)
            for group, split in zip(groups, split_of, strict=True)
            if split == "train" and {name for _, name in group} == {label}
        ]
        for split in ("val", "test"):
            lacking = target[split] - counts[split][label]
            assert lacking >= 0, (split, label)
            assert lacking == 0 or not exact
            assert not in_train or lacking < min(in_train)


@given(grouped(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_groups_does_not_matter(
    groups: list[Group], seed: int, shuffler: random.Random
) -> None:
    shuffled = groups.copy()
    shuffler.shuffle(shuffled)
    one = split_groups(groups, seed=seed, ratios=RATIOS)
    other = split_groups(shuffled, seed=seed, ratios=RATIOS)
    assert {g[0][0]: s for g, s in zip(groups, one, strict=True)} == {
        g[0][0]: s for g, s in zip(shuffled, other, strict=True)
    }
    folds = fold_groups(groups, seed=seed, num_folds=4)
    others = fold_groups(shuffled, seed=seed, num_folds=4)
    assert {g[0][0]: f for g, f in zip(groups, folds, strict=True)} == {
        g[0][0]: f for g, f in zip(shuffled, others, strict=True)
    }


@given(
    st.dictionaries(st.from_regex(r"k-[0-9]{1,4}", fullmatch=True), st.sampled_from("ab")), ratios
)
def test_without_twins_it_is_the_random_split(
    labels: dict[str, str], shares: dict[str, int]
) -> None:
    groups = [[(key, label)] for key, label in labels.items()]
    split_of = split_groups(groups, seed=5, ratios=shares)
    given_out = {g[0][0]: split for g, split in zip(groups, split_of, strict=True)}
    assert given_out == split_by_hash(labels, seed=5, ratios=shares)


@given(grouped(), st.integers(3, 6))
def test_folds_differ_by_the_largest_group_at_most(groups: list[Group], num_folds: int) -> None:
    pure = [group for group in groups if len({label for _, label in group}) == 1]
    fold_of = fold_groups(pure, seed=0, num_folds=num_folds)
    for label in "abc":
        sizes = [0] * num_folds
        for group, fold in zip(pure, fold_of, strict=True):
            sizes[fold] += len(group) * (group[0][1] == label)
        largest = max((len(group) for group in pure if group[0][1] == label), default=0)
        assert max(sizes) - min(sizes) <= largest


def test_some_groups_of_twins_are_held_out_in_a_larger_set() -> None:
    groups: list[Group] = [[(f"a-{n:04}", "a"), (f"b-{n:04}", "a")] for n in range(500)]
    groups += [[(f"s-{n:04}", "a")] for n in range(1000)]
    split_of = split_groups(groups, seed=0, ratios=RATIOS)
    assert counts_of(groups, split_of)["test"] == {"a": 200}
    pairs = Counter(split_of[:500])
    assert 30 < pairs["test"] < 70, "500 pairs at 8:1:1"
    assert 30 < pairs["val"] < 70


def test_a_group_too_large_for_a_held_out_split_stays_in_train() -> None:
    groups: list[Group] = [[(f"t-{n:03}", "a") for n in range(60)]]
    groups += [[(f"s-{n:03}", "a")] for n in range(40)]
    split_of = split_groups(groups, seed=0, ratios=RATIOS)
    assert split_of[0] == "train"
    assert Counter(split_of[1:]) == {"train": 20, "val": 10, "test": 10}


def test_a_set_of_one_group_has_nothing_held_out() -> None:
    groups: list[Group] = [[(f"t-{n}", "a") for n in range(10)]]
    assert split_groups(groups, seed=0, ratios=RATIOS) == ["train"]


def test_a_set_of_pairs_alone_is_split_too() -> None:
    groups: list[Group] = [[(f"a-{n:02}", "a"), (f"b-{n:02}", "a")] for n in range(10)]
    split_of = split_groups(groups, seed=0, ratios=RATIOS)
    assert Counter(split_of) == {"train": 8, "val": 1, "test": 1}
