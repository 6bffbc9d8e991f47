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
from collections import Counter
from collections.abc import Iterator, Sequence

MIN_CHARS = 24  # of the reduced text, with the spaces between words
# Jaccard similarity as a fraction, compared in integers to avoid rounding.
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
    """Pairs of positions in `texts` that, joined transitively, give all groups of duplicates.

    Exact: two sets that share enough words also share one of the few rarest words of each (the
    prefix filter of Chaudhuri, Ganti and Kaushik, ICDE 2006). Only such sets are compared, and of
    these only those with enough remaining words (Xiao et al., PPJoin, WWW 2008).
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
    holders: dict[str, _Holders] = {}
    joined: dict[int, int] = {}
    for words in sorted(first_of, key=lambda w: (len(w), first_of[w])):
        position, length = first_of[words], len(words)
        joined[position] = position
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        # Later sets are not shorter, so fewer words need to be stored than looked up.
        held = length - _at_least(2 * shared * length, shared + union) + 1
        for place, word in enumerate(rarest[: length - _at_least(shared * length, union) + 1]):
            of_word = _by_root(holders.get(word, {}), joined)
            for root, others in of_word.items():
                if root == _root(joined, position):
                    continue
                for other, other_place in others:
                    needed = _at_least(shared * (length + len(other)), shared + union)
                    # Where `word` is the rarest that both have, no more than these are shared.
                    if min(length - place, len(other) - other_place) < needed:
                        continue
                    if len(words & other) >= needed:
                        yield first_of[other], position
                        joined[root] = _root(joined, position)
                        break
            if place < held:
                of_word.setdefault(_root(joined, position), []).append((words, place))
            holders[word] = of_word


def _at_least(part: int, total: int) -> int:
    """`part / total` rounded up."""
    return -(-part // total)


# Root of a group so far -> its word sets that have some word among their rarest, each with the
# word's place among these. Thousands of variants of one advertisement are one entry, and a further
# variant needs one comparison.
_Holders = dict[int, list[tuple[frozenset[str], int]]]


def _by_root(held: _Holders, joined: dict[int, int]) -> _Holders:
    """`held` under the current roots."""
    if all(joined[root] == root for root in held):
        return held
    current: _Holders = {}
    for root, sets in held.items():
        current.setdefault(_root(joined, root), []).extend(sets)
    return current


def _root(joined: dict[int, int], position: int) -> int:
    while joined[position] != position:
        joined[position] = joined[joined[position]]
        position = joined[position]
    return position
