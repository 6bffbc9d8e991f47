"""Near sets of many words, one set after the other.

Two sets that share enough words also share one of the few rarest words of each (the prefix filter
of Chaudhuri, Ganti and Kaushik, ICDE 2006). Only such sets are compared, and of these only those
with enough remaining words (Xiao et al., PPJoin, WWW 2008). A long text has rare words, so few
sets are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shards.duplicates.word_sets import NEAR, at_least, shared_at_least


def near_pairs(sets: Mapping[frozenset[int], int]) -> Iterator[tuple[int, int]]:
    """Pairs of positions that, joined transitively, give all groups of near `sets`.

    `sets` has the position of each set of words; words are numbers, the smaller the rarer.
    """
    part, total = NEAR
    holders: dict[int, _Holders] = {}
    joined: dict[int, int] = {}
    for words in sorted(sets, key=lambda w: (len(w), sets[w])):
        position, length = sets[words], len(words)
        joined[position] = position
        # Later sets are not shorter, so fewer words need to be stored than looked up.
        held = length - shared_at_least(length, length) + 1
        for place, word in enumerate(sorted(words)[: length - at_least(part * length, total) + 1]):
            of_word = _by_root(holders.get(word, {}), joined)
            for root, others in of_word.items():
                if root == _root(joined, position):
                    continue
                for other, other_place in others:
                    needed = shared_at_least(length, len(other))
                    # Where `word` is the rarest that both have, no more than these are shared.
                    if min(length - place, len(other) - other_place) < needed:
                        continue
                    if len(words & other) >= needed:
                        yield sets[other], position
                        joined[root] = _root(joined, position)
                        break
            if place < held:
                of_word.setdefault(_root(joined, position), []).append((words, place))
            holders[word] = of_word


# Root of a group so far -> its word sets that have some word among their rarest, each with the
# word's place among these. Thousands of variants of one advertisement are one entry, and a further
# variant needs one comparison.
_Holders = dict[int, list[tuple[frozenset[int], int]]]


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
