"""Twins of texts and of pictures, against all pairs compared one by one."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from shards.duplicates.images import HASH_BYTES, NEAR_BITS, image_hash, image_pairs
from shards.duplicates.texts import MIN_CHARS, reduced_words, text_pairs


def joined(pairs: list[tuple[int, int]], count: int) -> set[frozenset[int]]:
    """The sets that `pairs` join transitively, by repeated merging."""
    sets = [{number} for number in range(count)]
    for one, other in pairs:
        first = next(s for s in sets if one in s)
        second = next(s for s in sets if other in s)
        if first is not second:
            first |= second
            sets.remove(second)
    return {frozenset(s) for s in sets}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RT @Some_One: A fine Day, at the lake http://t.co/AbC1", "a fine day at the lake"),
        ("A fine day @friend at THE lake!!! https://x.y/z #Lake", "a fine day at the lake lake"),
        ("cut at the end of a tweet ht", "cut at the end of a tweet"),
        ("cut at the end of a tweet http:/", "cut at the end of a tweet"),
        ("cut at the end of a tweet https…", "cut at the end of a tweet"),
        ("you &amp; me, www.site.example/page pic.twitter.com/Xy", "you me"),
        ("\uff26\uff35\uff2c\uff2c width", "full width"),
        ("rt RT", ""),
        ("\U0001f600 \U0001f600", ""),
        ("snake_case stays two", "snake case stays two"),
        ("http is a word inside", "http is a word inside"),
    ],
)
def test_what_is_left_of_a_text(text: str, words: str) -> None:
    assert " ".join(reduced_words(text)) == words


def test_near_identical_texts_are_twins_and_others_are_not() -> None:
    texts = [
        "one two three four five six seven eight nine ten",
        "RT @x: one two three four five six seven eight nine TEN http://t.co/1",
        "one two three four five six seven eight nine ten eleven",  # 10 of 11
        "one two three four five six seven eight",  # 8 of 10 of the first
        "one two three four five six seven",  # 7 of 8 of the one before
        "one two three four five zero nought nil null none",
        "happy new year to you",  # shorter than 24 characters
        "happy new year to you",
    ]
    assert joined(list(text_pairs(texts)), len(texts)) == {
        frozenset({0, 1, 2, 3, 4}),
        frozenset({5}),
        frozenset({6}),
        frozenset({7}),
    }


def test_the_shortest_text_that_links() -> None:
    long, short = "abcdefgh ijklmnop qrstuv", "abcdefgh ijklmnop qrstu"
    assert (len(long), len(short), MIN_CHARS) == (24, 23, 24)
    assert list(text_pairs([long, long])) == [(0, 1)]
    assert list(text_pairs([short, short])) == []


WORDS = [f"word{letter}{letter}" for letter in "abcdefghijkl"]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=4, max_size=12), max_size=12))
def test_the_text_search_finds_all_pairs(sets: list[list[str]]) -> None:
    texts = [" ".join(words) for words in sets]
    expected = [
        (i, j)
        for (i, one), (j, other) in itertools.combinations(enumerate(map(set, sets)), 2)
        if len(one & other) * 5 >= len(one | other) * 4
    ]
    found = list(text_pairs(texts))
    assert joined(found, len(texts)) == joined(expected, len(texts))


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A made-up photograph: smooth random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def bits_apart(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one[:32]) ^ int.from_bytes(other[:32])).bit_count()


def test_the_same_picture_in_other_forms_is_a_twin() -> None:
    original = picture(1)
    buffer = io.BytesIO()
    original.resize((160, 120)).save(buffer, "JPEG", quality=40)
    watermarked = original.copy()
    ImageDraw.Draw(watermarked).rectangle((280, 220, 315, 235), fill="white")
    forms = [
        Image.open(io.BytesIO(buffer.getvalue())),
        original.convert("L"),
        original.convert("RGBA"),
        original.resize((240, 240)),
        watermarked,
        original.crop((4, 4, 316, 236)),
    ]
    first = image_hash(original)
    assert len(first) == HASH_BYTES
    prints = [first, *map(image_hash, forms), image_hash(picture(2))]
    assert joined(list(image_pairs(prints)), len(prints)) == {
        frozenset(range(7)),
        frozenset({7}),
    }


def test_flat_pictures_are_twins_by_their_colours_alone() -> None:
    red, blue = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    prints = [image_hash(p) for p in (red, blue, red.resize((80, 60)), Image.new("L", (9, 9)))]
    assert list(image_pairs(prints)) == [(0, 2)]


def test_empty_prints_have_no_twins() -> None:
    assert list(image_pairs([b"", b""])) == []


def test_tiny_pictures_have_prints() -> None:
    assert len(image_hash(Image.new("RGB", (1, 1)))) == HASH_BYTES
    assert len(image_hash(picture(3, size=(1000, 2)))) == HASH_BYTES


def flipped(content: bytes, bits: list[int]) -> bytes:
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 128 >> bit % 8
    return bytes(changed)


def test_the_distance_is_counted_to_the_bit() -> None:
    base = image_hash(picture(4))
    at, beyond = (flipped(base, list(range(n))) for n in (NEAR_BITS, NEAR_BITS + 1))
    assert NEAR_BITS == 60
    assert list(image_pairs([base, at])) == [(0, 1)]
    assert list(image_pairs([base, beyond])) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 99))), max_size=20))
def test_the_picture_search_finds_all_pairs(parts: list[tuple[int, set[int]]]) -> None:
    bases = [image_hash(picture(seed)) for seed in (5, 6, 7)]
    prints = [flipped(bases[base], sorted(bits)) for base, bits in parts]
    expected = [
        (i, j)
        for (i, one), (j, other) in itertools.combinations(enumerate(prints), 2)
        if bits_apart(one, other) <= NEAR_BITS
    ]
    assert joined(list(image_pairs(prints)), len(prints)) == joined(expected, len(prints))


def test_more_prints_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.duplicates.images._TILE", 3)
    base = [image_hash(picture(seed)) for seed in range(4)]
    prints = [*base, *(flipped(content, [7, 9]) for content in base)]
    assert sorted(image_pairs(prints)) == [(0, 4), (1, 5), (2, 6), (3, 7)]
