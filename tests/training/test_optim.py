"""Learning rates as a function of the step, and which parameters are decayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmsa.config import OptimConfig
from mmsa.training.optim import (
    build_optimizer,
    learning_rate_share,
    set_learning_rates,
    warmup_steps,
)


def scales(num_steps: int, **settings: Any) -> list[float]:
    config = OptimConfig(**settings)
    return [learning_rate_share(step, num_steps, config) for step in range(num_steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Warm-up reaches the peak at step 2, decay 0 at step 10, which is the first one not taken.
        (
            {"schedule": "linear", "warmup_steps": 2},
            [1 / 3, 2 / 3, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0],
        ),
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [1 / 3, 2 / 3, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0],
        ),
        ({"schedule": "constant", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "linear", "warmup_steps": 0},
            [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0],
        ),
        # A tenth of 10 steps is one step of warm-up.
        (
            {"schedule": "linear", "warmup_steps": None},
            [1 / 2, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9, 0],
        ),
        # Longer than the run: it ends on the way up.
        (
            {"schedule": "cosine", "warmup_steps": 19},
            [step / 20 for step in range(1, 12)],
        ),
        (
            {"schedule": "cosine", "warmup_steps": 10},
            [*[step / 11 for step in range(1, 11)], 1],
        ),
    ],
)
def test_the_scale_of_each_step(settings: dict[str, Any], expected: list[float]) -> None:
    assert scales(10, **settings) == pytest.approx(expected, abs=1e-6)


def test_the_scale_is_never_negative_nor_above_the_peak() -> None:
    for schedule in ("cosine", "linear", "constant"):
        for warmup in (None, 0, 1, 5, 50):
            for num_steps in (1, 2, 7):
                config = OptimConfig(schedule=schedule, warmup_steps=warmup)
                for step in range(num_steps + 3):
                    assert 0 <= learning_rate_share(step, num_steps, config) <= 1


def test_default_warmup_is_a_tenth() -> None:
    config = OptimConfig()
    assert [warmup_steps(config, steps) for steps in (1, 9, 10, 99, 1000)] == [0, 0, 1, 9, 100]
    assert warmup_steps(OptimConfig(warmup_steps=7), 1000) == 7


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(8, 3)


def groups_of(model: Parts) -> dict[str, list[tuple[str, nn.Parameter]]]:
    parts = {"text": model.text, "image": model.image, "head": model.head}
    return {name: list(module.named_parameters()) for name, module in parts.items()}


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)]
)
def test_each_part_has_its_rate_and_no_norm_or_bias_decays(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    model = Parts()
    config = OptimConfig(
        name=name, text_lr=1e-5, image_lr=1e-4, head_lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9)
    )
    optimizer = build_optimizer(groups_of(model), config)
    assert type(optimizer) is kind
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (
            group["part"],
            group["weight_decay"],
            group["peak_lr"],
            [names[id(parameter)] for parameter in group["params"]],
        )
        for group in optimizer.param_groups
    ]
    assert found == [
        ("text", 0.1, 1e-5, ["text.0.weight", "text.1.weight"]),
        ("text", 0.0, 1e-5, ["text.1.bias", "text.2.weight", "text.2.bias"]),
        ("image", 0.1, 1e-4, ["image.0.weight"]),
        ("image", 0.0, 1e-4, ["image.0.bias", "image.1.weight", "image.1.bias"]),
        ("head", 0.1, 1e-3, ["head.weight"]),
        ("head", 0.0, 1e-3, ["head.bias"]),
    ]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


def test_a_frozen_part_has_no_group() -> None:
    groups = groups_of(Parts())
    optimizer = build_optimizer({**groups, "text": []}, OptimConfig())
    assert {group["part"] for group in optimizer.param_groups} == {"image", "head"}


def test_rates_are_written_into_the_groups() -> None:
    config = OptimConfig(text_lr=1e-5, image_lr=1e-4, head_lr=1e-3)
    optimizer = build_optimizer(groups_of(Parts()), config)
    assert set_learning_rates(optimizer, 0.5) == {"text": 5e-6, "image": 5e-5, "head": 5e-4}
    assert [group["lr"] for group in optimizer.param_groups] == [5e-6, 5e-6, 5e-5, 5e-5, 5e-4, 5e-4]
    # Of the peak, not of the rate before.
    assert set_learning_rates(optimizer, 1.0) == {"text": 1e-5, "image": 1e-4, "head": 1e-3}


def test_a_step_at_scale_zero_moves_nothing() -> None:
    model = Parts()
    optimizer = build_optimizer(groups_of(model), OptimConfig(weight_decay=0.1))
    set_learning_rates(optimizer, 0.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
