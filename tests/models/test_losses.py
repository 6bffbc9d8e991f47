"""Focal and class-balanced losses, against values by hand and against cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmsa.config import LossConfig, ModelConfig, load_config
from mmsa.errors import UserError
from mmsa.models.losses import build_loss
from mmsa.models.model import MODEL_CHECKS
from mmsa.training.objective import Objective

THREE_QUARTERS = torch.tensor([[math.log(6.0), 0.0, 0.0]])  # p of class 0 is 3/4, of others 1/8


def _losses(name: str, logits: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    of_call = {
        key: settings.pop(key) for key in ("class_weights", "label_smoothing") if key in settings
    }
    loss = build_loss(LossConfig.model_validate({"name": name, **settings}))
    return loss.per_sample(logits, targets, **of_call)


def test_the_focal_loss_by_hand() -> None:
    sure, wrong = (
        _losses("focal", THREE_QUARTERS, torch.tensor([label])).item() for label in (0, 1)
    )
    assert sure == pytest.approx(0.25**2 * -math.log(0.75), rel=1e-5)
    assert wrong == pytest.approx(0.875**2 * math.log(8), rel=1e-5)
    weighted = _losses(
        "focal", THREE_QUARTERS, torch.tensor([1]), class_weights=torch.tensor([1.0, 3.0, 1.0])
    )
    assert weighted.item() == pytest.approx(3 * wrong, rel=1e-6)
    half = _losses("focal", THREE_QUARTERS, torch.tensor([[0.5, 0.5, 0.0]]))
    assert half.item() == pytest.approx((sure + wrong) / 2, rel=1e-5)


@given(
    numbers=st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=2),
    smoothing=st.sampled_from([0.0, 0.1]),
    weights=st.sampled_from([None, [0.5, 1.0, 2.0]]),
    soft=st.booleans(),
)
def test_with_gamma_0_it_is_cross_entropy(
    numbers: list[float], labels: list[int], smoothing: float, weights: Any, soft: bool
) -> None:
    logits, targets = torch.tensor(numbers).view(2, 3), torch.tensor(labels)
    if soft:
        targets = torch.nn.functional.one_hot(targets, 3) * 0.6 + 0.4 / 3
    options: dict[str, Any] = {"label_smoothing": smoothing}
    if weights is not None:
        options["class_weights"] = torch.tensor(weights)
    expected = _losses("cross_entropy", logits, targets, **options)
    found = _losses("focal", logits, targets, gamma=0.0, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_gradient_is_finite_however_sure_the_model_is(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    _losses("focal", logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 0.5  # the wrong one is still pushed


def test_effective_numbers_by_hand() -> None:
    """beta 0.9: 1, 10 and 100 samples count as 1, 6.513 and 9.9997."""
    loss = build_loss(LossConfig.model_validate({"name": "class_balanced", "beta": 0.9}))
    weights = loss.class_weights([1, 10, 100])
    assert weights is not None
    inverse = [1 / 1.0, 1 / 6.513216, 1 / 9.999734]
    expected = [3 * one / sum(inverse) for one in inverse]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert build_loss("cross_entropy").class_weights([1, 10, 100]) is None


def test_no_weights_at_beta_0_and_a_class_without_samples_does_not_shift_the_others() -> None:
    def weights(beta: float, counts: list[int]) -> list[float]:
        loss = build_loss(LossConfig.model_validate({"name": "class_balanced", "beta": beta}))
        found = loss.class_weights(counts)
        assert found is not None
        return found.tolist()

    assert weights(0.0, [3, 50, 7]) == [1.0, 1.0, 1.0]
    assert weights(0.999, [30, 60, 0])[:2] == pytest.approx(weights(0.999, [30, 60]))


def test_the_weights_of_the_training_split_reach_the_step() -> None:
    model = ModelConfig.model_validate({"loss": {"name": "class_balanced", "beta": 0.9}})
    objective = Objective(model, [1, 10, 100], torch.device("cpu"))
    batch: dict[str, Any] = {"labels": torch.tensor([0, 2]), "targets": None}
    even = objective.per_sample(torch.zeros(2, 3), batch)
    assert objective.class_weights is not None
    expected = math.log(3) * objective.class_weights[[0, 2]]
    torch.testing.assert_close(even, expected)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["model.loss=class_balanced", "model.class_weights=balanced"],
            "model.class_weights=balanced with model.loss=class_balanced, which weights the "
            "classes itself",
        ),
        (["model.loss.name=focal", "model.loss.gamma=-1"], "model.loss.gamma=-1"),
        (["model.loss.name=class_balanced", "model.loss.beta=1"], "model.loss.beta=1"),
        (["model.loss=focl"], "did you mean focal?"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, settings, checks=MODEL_CHECKS)
    assert told in str(refused.value)
