"""Near-duplicate texts: tweets are reduced to sets of words, and similar sets are found.

The rule (docs/splits.md) removes RT, mentions, links, case, punctuation and emoji. Two texts are
duplicates where they share at least 80 % of the remaining words that either has. A text that is
then shorter than `MIN_CHARS` has no duplicates: everybody writes greetings and exclamations of two
words.
"""

from __future__ import annotations

import html
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shards.duplicates.joined import Ints, Joined
from shards.duplicates.long_word_sets import near_pairs
from shards.duplicates.word_sets import SetsOfLength, Words, join_near, shared_at_least

MIN_CHARS = 24  # of the reduced text, with the spaces between words
_LONGEST = 64  # different words of a text that is searched by length

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
    """Pairs of positions in `texts` that, joined transitively, give all groups of duplicates.

    Exact: the groups are those of a comparison of all pairs.
    """
    first_of: dict[bytes, int] = {}
    number_of: dict[str, int] = {}
    flat, lengths, positions = array("i"), array("i"), array("q")
    for position, text in enumerate(texts):
        words = reduced_words(text)
        if sum(map(len, words)) + len(words) - 1 < MIN_CHARS:
            continue
        numbers = {number_of.setdefault(word, len(number_of)) for word in words}
        content = array("i", sorted(numbers))
        first = first_of.setdefault(content.tobytes(), position)
        if first != position:
            yield first, position
            continue
        flat.extend(content)
        lengths.append(len(content))
        positions.append(position)
    if not positions:
        return
    del first_of, number_of
    sets = _WordSets(
        np.array(positions, dtype=np.int64),
        _by_rarity(np.array(flat, dtype=np.int32)),
        np.array(lengths, dtype=np.int64),
    )
    joined = Joined(len(texts))
    join_near(sets.by_length(_LONGEST), joined)
    yield from joined.links()
    yield from near_pairs(sets.from_length(_LONGEST))


def _by_rarity(words: Words) -> Words:
    """`words` (n,) numbered again, the rarest first."""
    order = np.argsort(np.bincount(words), kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[words]


@dataclass(frozen=True)
class _WordSets:
    """Different sets of words: `positions` and `lengths` (n,), and `words`, one after the other."""

    positions: Ints
    words: Words
    lengths: Ints

    def by_length(self, longest: int) -> dict[int, SetsOfLength]:
        """The sets of at most `longest` words."""
        starts = np.cumsum(self.lengths) - self.lengths
        found = {}
        for length in np.unique(self.lengths[self.lengths <= longest]).tolist():
            chosen = np.flatnonzero(self.lengths == length)
            words = self.words[starts[chosen, None] + np.arange(length)]
            found[length] = SetsOfLength(self.positions[chosen], np.sort(words, axis=1))
        return found

    def from_length(self, longest: int) -> dict[frozenset[int], int]:
        """The position of each set that is longer than `longest`, or near enough to one that is."""
        shortest = longest + 1
        if not (self.lengths > longest).any():
            return {}
        while shared_at_least(shortest - 1, longest + 1) <= shortest - 1:
            shortest -= 1
        starts = np.cumsum(self.lengths) - self.lengths
        return {
            frozenset(self.words[starts[i] : starts[i] + self.lengths[i]].tolist()): position
            for i, position in enumerate(self.positions.tolist())
            if self.lengths[i] >= shortest
        }
