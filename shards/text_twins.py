"""Texts that say the same: tweets reduced to their words, and which word sets are near each other.

Rule (docs/splits.md): RT, mentions, links, case, punctuation and emoji are removed; of what is left
two texts are twins where they share at least 80 % of the words that either has. A text of fewer
than `MIN_CHARS` characters after that has no twins: greetings and exclamations of two words are
written by everybody.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

MIN_CHARS = 24  # of the reduced text, blanks between its words included
# Jaccard similarity as a fraction: compared in whole numbers, so no rounding decides.
NEAR = (4, 5)

_LINK = re.compile(r"(?:https?:|www\.|pic\.twitter\.com/)\S*")
_MENTION = re.compile(r"@\w+")
_WORD = re.compile(r"[^\W_]+")
_CUT_LINK = re.compile(r"\s(?:h|ht|htt|https?)\W*$")  # a tweet ends at 140 characters, links too


def reduced_words(text: str) -> list[str]:
    """The words of `text` after the removals, in order."""
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    plain = _MENTION.sub(" ", _LINK.sub(" ", plain))
    return [word for word in _WORD.findall(_CUT_LINK.sub(" ", plain)) if word != "rt"]


def text_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in `texts` that, joined transitively, join all twins.

    Exact: of two sets that share enough words, one of the rarest few words of each is shared (the
    prefix filter of Chaudhuri, Ganti and Kaushik, ICDE 2006), so only such sets are compared.
    """
    first_of: dict[frozenset[str], int] = {}
    for position, text in enumerate(texts):
        words = reduced_words(text)
        if sum(map(len, words)) + len(words) - 1 < MIN_CHARS:
            continue
        first = first_of.setdefault(frozenset(words), position)
        if first != position:
            yield first, position
    yield from _near_pairs(first_of)


def _near_pairs(first_of: dict[frozenset[str], int]) -> Iterator[tuple[int, int]]:
    shared, union = NEAR
    frequency = Counter(word for words in first_of for word in words)
    holders: dict[str, list[frozenset[str]]] = {}  # word -> smaller sets with it among the rarest
    for words in sorted(first_of, key=lambda w: (len(w), first_of[w])):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        needed = -(-shared * len(words) // union)  # shared words: at least this many
        prefix = rarest[: len(words) - needed + 1]
        candidates = {other for word in prefix for other in holders.get(word, ())}
        for other in candidates:
            common = len(words & other)
            if common * union >= (len(words) + len(other) - common) * shared:
                yield first_of[other], first_of[words]
        for word in prefix:
            holders.setdefault(word, []).append(words)
