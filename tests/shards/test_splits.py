import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.splits.by_hash import (
    largest_remainder,
    packed_order,
    shard_sizes,
    split_by_hash,
    split_counts,
)

RATIOS = {"train": 8, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("total", "train", "val", "test"),
    [
        (2210, 1768, 221, 221),  # positive of the development part of MVSA-Single
        (372, 298, 37, 37),  # neutral: 297.6, 37.2, 37.2
        (1097, 877, 110, 110),  # negative: 877.6, 109.7, 109.7
        (10, 8, 1, 1),
        (5, 4, 0, 1),  # 4, 0.5, 0.5: test before val
        (4, 3, 0, 1),  # 3.2, 0.4, 0.4
        (1, 1, 0, 0),
        (0, 0, 0, 0),
    ],
)
def test_counts_by_largest_remainder(total: int, train: int, val: int, test: int) -> None:
    assert split_counts(total, RATIOS) == {"train": train, "val": val, "test": test}


def test_a_ratio_of_zero_gets_nothing() -> None:
    assert split_counts(7, {"train": 1, "val": 1, "test": 0}) == {"train": 3, "val": 4, "test": 0}


@given(st.integers(0, 10_000), st.lists(st.integers(0, 20), min_size=1).filter(any))
def test_shares_sum_up_and_are_within_one(total: int, weights: list[int]) -> None:
    counts = largest_remainder(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1


def test_split_is_the_sorted_hash_within_a_label() -> None:
    labels = {f"k-{number}": ("a" if number < 10 else "b") for number in range(20)}
    ranked = sorted(
        (key for key in labels if labels[key] == "b"),
        key=lambda key: hashlib.sha256(f"7:{key}".encode()).hexdigest(),
    )
    split = split_by_hash(labels, seed=7, ratios=RATIOS)
    assert [split[key] for key in ranked] == ["test", "val"] + ["train"] * 8


def test_split_does_not_depend_on_the_order_of_reading_but_on_the_seed() -> None:
    labels = {f"k-{number}": "ab"[number % 2] for number in range(100)}
    backwards = dict(reversed(labels.items()))
    split = split_by_hash(labels, seed=0, ratios=RATIOS)
    assert split_by_hash(backwards, seed=0, ratios=RATIOS) == split
    assert split_by_hash(labels, seed=1, ratios=RATIOS) != split


@pytest.mark.parametrize(
    ("num_samples", "samples_per_shard", "sizes"),
    [
        (0, None, []),
        (1, None, [1]),
        (63, None, [63]),
        (64, None, [32, 32]),
        (368, None, [46] * 8),
        (2943, None, [368] * 7 + [367]),
        (8001, None, [889] * 9),
        (10, 4, [4, 3, 3]),
        (10, 5, [5, 5]),
        (3, 100, [3]),
    ],
)
def test_shard_sizes(num_samples: int, samples_per_shard: int | None, sizes: list[int]) -> None:
    assert shard_sizes(num_samples, samples_per_shard) == sizes


def test_packed_order_mixes_what_came_sorted() -> None:
    keys = [f"k-{number}" for number in range(1000)]
    order = packed_order(keys)
    assert sorted(order) == sorted(keys)
    assert packed_order(list(reversed(keys))) == order
    first_half = sum(int(key[2:]) < 500 for key in order[:500])
    assert 200 < first_half < 300  # 500 if it kept the order, 250 expected
