"""The search for duplicates at size: exact groups, few comparisons, whatever the texts."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.duplicates import DISTANCES, fingerprints, measured, tweets
from shards.duplicates import images, texts, word_sets
from shards.duplicates.images import image_pairs
from shards.duplicates.joined import Joined
from shards.duplicates.texts import reduced_words, text_pairs


def groups(pairs: list[tuple[int, int]], count: int) -> list[int]:
    """The smallest position of the group of each position."""
    joined = Joined(count)
    if pairs:
        one, other = np.array(pairs).T
        joined.join(one, other)
    return joined.roots(np.arange(count)).tolist()


def by_comparing_all(contents: list[str]) -> list[int]:
    sets = [set(reduced_words(text)) for text in contents]
    near = [
        (i, j)
        for (i, one), (j, other) in itertools.combinations(enumerate(sets), 2)
        if len(one & other) * 5 >= len(one | other) * 4
    ]
    return groups(near, len(contents))


def test_groups_are_joined_whatever_the_order() -> None:
    chain = [(number, number + 1) for number in range(99)]
    assert groups(chain[::-1], 100) == [0] * 100
    assert groups([(3, 1), (4, 3), (5, 0)], 6) == [0, 1, 2, 1, 1, 0]


@pytest.mark.parametrize(("heavy", "longest"), [(64, 64), (2, 64), (2, 9)])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_groups_are_those_of_all_comparisons(
    heavy: int, longest: int, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits of a few texts in few words; also with common keys, and with texts over the length."""
    monkeypatch.setattr(word_sets, "_HEAVY", heavy)
    monkeypatch.setattr(word_sets, "_CALL", 0)
    monkeypatch.setattr(texts, "_LONGEST", longest)
    vocabulary = [f"wordnumber{number}" for number in range(24)]
    bases = data.draw(st.lists(st.integers(4, 20), min_size=1, max_size=3))
    edits = st.sets(st.integers(0, 23), max_size=5)
    contents = []
    for length, changed in data.draw(st.lists(st.tuples(st.sampled_from(bases), edits))):
        kept = set(range(length)) ^ changed
        contents.append(" ".join(vocabulary[number] for number in sorted(kept)))
    contents = [text for text in contents if len(text) >= texts.MIN_CHARS]
    assert groups(list(text_pairs(contents)), len(contents)) == by_comparing_all(contents)


def test_made_up_tweets_have_the_groups_of_all_comparisons() -> None:
    contents = [text for text in tweets(700) if len(" ".join(reduced_words(text))) >= 24]
    expected = by_comparing_all(contents)
    assert len(set(expected)) < len(contents) - 20
    assert groups(list(text_pairs(contents)), len(contents)) == expected


@pytest.mark.parametrize("kind", ["tweets", "template", "few words"])
def test_few_texts_are_compared(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of word sets that are compared word by word, per text."""
    count = 4000
    rng = np.random.default_rng(3)
    if kind == "tweets":
        contents = tweets(count)
    elif kind == "template":  # two of twelve words change: no duplicates
        contents = [
            f"today i ran {n} miles with the app near place{n * 7919 % 1000} come along"
            for n in range(count)
        ]
    else:  # any of 60 words in a text: all are frequent
        chosen = (rng.choice(60, 14, replace=False) for _ in range(count))
        contents = [" ".join(f"word{n}" for n in words) for words in chosen]
    compared = 0
    shares = word_sets._shares

    def counted(one: Any, left: Any, other: Any, right: Any, shared: int) -> Any:
        nonlocal compared
        compared += len(left)
        return shares(one, left, other, right, shared)

    monkeypatch.setattr(word_sets, "_shares", counted)
    list(text_pairs(contents))
    assert compared <= 4 * count  # of 8 million pairs


def test_texts_of_many_words() -> None:
    long = " ".join(f"w{number:x}" for number in range(20_000))  # over 10^5 characters
    cut = long[: len(long) * 85 // 100]
    other = " ".join(f"v{number:x}" for number in range(20_000))
    assert len(long) > 100_000
    assert groups(list(text_pairs([long, other, cut])), 3) == [0, 1, 0]
    of_65, of_52 = (" ".join(f"w{number:x}" for number in range(n)) for n in (65, 52))
    assert groups(list(text_pairs([of_52, of_65])), 2) == [0, 0]
    assert groups(list(text_pairs([of_52.replace("w1 ", "v1 "), of_65])), 2) == [0, 1]


def test_sampled_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the size up to which all are compared: near copies are found, and nothing else."""
    hashes, planted = fingerprints(3000)
    exact = groups(list(image_pairs(hashes)), len(hashes))
    monkeypatch.setattr(images, "MOST_COMPARED", 0)
    found = groups(list(image_pairs(hashes)), len(hashes))
    assert list(planted) == list(DISTANCES)
    for distance, of_distance in planted.items():
        assert all(exact[one] == exact[other] for one, other in of_distance)
        shares = [found[one] == found[other] for one, other in of_distance]
        assert sum(shares) >= (1 if distance <= 48 else 0.9) * len(shares), distance
    # Every group that the samples find is in a group of the exact search.
    assert all(exact[position] == exact[root] for position, root in enumerate(found))


def test_thousands_of_variants_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_COMPARED", 0)
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, 32, dtype=np.uint8)
    flips = np.zeros((3000, 256), dtype=np.uint8)
    for row in flips:
        row[rng.choice(256, 8, replace=False)] = 1
    hashes = [(base ^ code).tobytes() + bytes([255]) + bytes(8) for code in np.packbits(flips, 1)]
    assert groups(list(image_pairs(hashes)), 3000) == [0] * 3000


def test_the_benchmark_reports_what_it_found() -> None:
    figures = measured(400)
    assert figures["rows"] == 400
    assert figures["texts_joined"] > 20
    assert set(figures["images_found"].values()) == {1.0}
