"""Which ingredients go into a soup: the greedy rule, apart from any model.

Wortsman et al., "Model soups", ICML 2022, recipe 1 (greedy soup): the ingredients are sorted by
their score on held-out data, the best first; each is added if the score of the mean does not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[Sequence[int]], float]  # of the mean of these ingredients; more is better


@dataclass(frozen=True)
class Trial:
    """An ingredient that was tried: the score of the mean with it, and whether it stayed."""

    ingredient: int
    value: float
    added: bool


@dataclass(frozen=True)
class Choice:
    """The ingredients of a soup, in the order in which they were added; how they were found."""

    chosen: tuple[int, ...]
    value: float  # of the mean of the chosen ones
    trials: tuple[Trial, ...] = ()


def by_score(values: Sequence[float], ties: Sequence[str]) -> list[int]:
    """The ingredients, the best score first; equal scores in the order of `ties`."""
    return sorted(range(len(values)), key=lambda i: (-values[i], ties[i]))


def greedy(order: Sequence[int], values: Sequence[float], score: Score) -> Choice:
    """The greedy soup of ingredients in `order`, whose own scores are `values`.

    `score` is called once for each ingredient but the first.
    """
    chosen, value = [order[0]], values[order[0]]
    trials = []
    for ingredient in order[1:]:
        tried = score([*chosen, ingredient])
        added = tried >= value
        trials.append(Trial(ingredient, tried, added))
        if added:
            chosen.append(ingredient)
            value = tried
    return Choice(tuple(chosen), value, tuple(trials))


def uniform(order: Sequence[int], score: Score) -> Choice:
    """The mean of all ingredients, which `score` is called for once."""
    return Choice(tuple(order), score(order))
