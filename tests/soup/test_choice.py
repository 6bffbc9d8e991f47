"""Which ingredients go into a soup, and the mean of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from mmsa.soup.choice import by_score, greedy, uniform
from mmsa.soup.mixing import layers_with_other_statistics, mean_of


def test_greedy_adds_what_does_not_lower_the_score() -> None:
    """Recipe 1 of Wortsman et al.: the comparison is with the mean so far, not with the best."""
    values = [0.60, 0.70, 0.65, 0.50]
    of_means = {(1, 2): 0.72, (1, 2, 0): 0.71, (1, 2, 3): 0.72}
    calls: list[tuple[int, ...]] = []

    def score(chosen: Sequence[int]) -> float:
        calls.append(tuple(chosen))
        return of_means[tuple(chosen)]

    order = by_score(values, ["d", "c", "b", "a"])
    assert order == [1, 2, 0, 3]
    found = greedy(order, values, score)
    assert found.chosen == (1, 2, 3)
    assert found.value == 0.72
    assert [(trial.ingredient, trial.added) for trial in found.trials] == [
        (2, True),
        (0, False),
        (3, True),
    ]
    assert calls == list(of_means)


def test_equal_scores_have_an_order_that_does_not_depend_on_the_command_line() -> None:
    assert by_score([0.5, 0.5, 0.6], ["b", "a", "c"]) == [2, 1, 0]
    assert uniform([2, 1, 0], lambda chosen: len(chosen) / 4).chosen == (2, 1, 0)


def test_the_mean_of_weights_and_the_first_integers() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, 4.0]), "n": torch.tensor(5)},
        {"w": torch.tensor([6.0, 6.0]), "n": torch.tensor(7)},
    ]
    found = mean_of(states)
    assert found["w"].tolist() == [3.0, 4.0]
    assert found["w"].dtype == torch.float32
    assert found["n"].item() == 3
    alone = mean_of([states[1]])
    assert torch.equal(alone["w"], states[1]["w"])


@pytest.mark.parametrize(("changed", "expected"), [("0.", {"0"}), ("1.", {"1"}), ("", {"0", "1"})])
def test_frozen_statistics_are_left_as_they_are(changed: str, expected: set[str]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {
        name: tensor + 1 if name.startswith(changed) and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    assert layers_with_other_statistics(model, [state, state]) == set()
    assert layers_with_other_statistics(model, [state, other]) == expected
