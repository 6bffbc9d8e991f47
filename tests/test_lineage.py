"""What an export says about where its weights are from."""

from __future__ import annotations

from typing import Any

from mmsa.lineage import (
    TrainingData,
    earlier_openings,
    history_of,
    merged_history,
    soup_of,
    training_data,
)


def entry(name: str, digest: str, **openings: int) -> dict[str, Any]:
    return {
        "weights_sha256": name,
        "shards": f"data/{digest}",
        "shards_digest": digest,
        "test_openings": openings,
    }


def test_all_data_counts_once_and_the_own_comes_first() -> None:
    facts = {"shards_digest": "b", "history": [entry("1", "a"), entry("2", "b"), entry("3", "a")]}
    assert training_data(facts, "here") == [TrainingData("here", "b"), TrainingData("data/a", "a")]
    early = {"step": 3}  # an export of an early version
    assert training_data(early, "here") == [TrainingData("here", None)]
    assert (history_of(early), soup_of(early)) == ([], None)


def test_openings_of_the_same_data_are_added() -> None:
    facts = {"history": [entry("1", "a", a=2, b=1), entry("2", "b", b=3)]}
    assert [earlier_openings(facts, digest) for digest in ("a", "b", "c")] == [2, 4, 0]


def test_the_histories_of_ingredients_are_joined() -> None:
    one, two, three = (entry(name, "a") for name in "123")
    assert merged_history([[one, two], [one, three]]) == [one, two, three]
