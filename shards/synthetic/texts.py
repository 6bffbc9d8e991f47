"""Made-up tweets whose words show the text label."""

from __future__ import annotations

import numpy as np

from shards.synthetic.words import (
    MARKS,
    PEOPLE,
    PLACES,
    SENTIMENT_WORDS,
    TEMPLATES,
    THINGS,
    TIMES,
    VERBS,
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MAX_CHARACTERS = 140  # of a tweet when MVSA was collected

# How often a feature of real tweets appears; close to the counts on MVSA-Single.
_P_RETWEET, _P_MENTION, _P_HASHTAG, _P_URL, _P_MARK = 0.35, 0.2, 0.5, 0.26, 0.15


def make_text(label: str, rng: np.random.Generator) -> str:
    """One tweet of 20 to 140 characters: two sentiment words of `label` among neutral ones."""
    first, second = _pick(SENTIMENT_WORDS[label], rng, 2)
    person, other_person = _pick(PEOPLE, rng, 2)
    thing, other_thing = _pick(THINGS, rng, 2)
    text = _one(TEMPLATES, rng).format(
        s=first,
        t=second,
        w=person,
        w2=other_person,
        o=thing,
        o2=other_thing,
        p=_one(PLACES, rng),
        d=_one(TIMES, rng),
        v=_one(VERBS, rng),
    )
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return _decorated(text, rng)


def _decorated(text: str, rng: np.random.Generator) -> str:
    """`text` with mentions, hashtags, URLs and non-ASCII characters, while there is room."""
    chance = rng.random(5)
    if chance[0] < _P_RETWEET:
        text = f"RT @{_handle(rng)}: {text}"
    elif chance[1] < _P_MENTION:
        text = f"@{_handle(rng)} {text}"
    endings = []
    if chance[2] < _P_HASHTAG:
        endings.append(f"#{_one(PLACES, rng)}" + (_one(TIMES, rng) if rng.random() < 0.5 else ""))
    if chance[4] < _P_MARK:
        endings.append(_one(MARKS, rng))
    if chance[3] < _P_URL:
        endings.append(f"http://t.co/{_random_letters(10, rng)}")
    for ending in endings:
        if len(text) + 1 + len(ending) <= _MAX_CHARACTERS:
            text = f"{text} {ending}"
    return text


def _handle(rng: np.random.Generator) -> str:
    return f"{_one(THINGS, rng)}_{_random_letters(int(rng.integers(2, 6)), rng)}"


def _random_letters(length: int, rng: np.random.Generator) -> str:
    return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=length))


def _one(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _pick(words: tuple[str, ...], rng: np.random.Generator, number: int) -> list[str]:
    """`number` different words."""
    return [words[i] for i in rng.choice(len(words), size=number, replace=False)]
