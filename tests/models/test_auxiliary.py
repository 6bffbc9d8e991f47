"""Auxiliary heads: what they see, which labels train them, and what their loss adds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmsa.config import ModelConfig, load_config
from mmsa.errors import UserError
from mmsa.models.auxiliary import auxiliary_loss
from mmsa.models.losses import build_loss
from mmsa.models.model import (
    MODEL_CHECKS,
    SentimentModel,
    build_model,
    count_parameters,
    parameter_groups,
)
from mmsa.training.objective import Objective
from tests.models.tiny import image_settings, text_settings

IDS = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
IMAGES = torch.arange(2 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(2, 3, 32, 32)


def _config(**settings: Any) -> ModelConfig:
    encoders = {"text_encoder": text_settings(), "image_encoder": image_settings()}
    return ModelConfig.model_validate({**encoders, "fusion": {"hidden": [6]}, **settings})


def _model(**settings: Any) -> SentimentModel:
    torch.manual_seed(0)
    return build_model(_config(**settings), 3)


def test_a_head_is_a_linear_layer_on_its_modality_alone() -> None:
    model = _model(auxiliary={"text": 0.3, "image": 0.2}).eval()
    logits, of_heads = model(IDS, MASK, IMAGES, auxiliary=True)
    assert torch.equal(logits, model(IDS, MASK, IMAGES))
    assert model.auxiliary is not None
    assert model.text_encoder is not None
    assert model.image_encoder is not None
    for name, features in (
        ("text", model.text_encoder(IDS, MASK)),
        ("image", model.image_encoder(IMAGES)),
    ):
        head = model.auxiliary[name]
        assert torch.equal(of_heads[name], features @ head.weight.T + head.bias)
        assert of_heads[name].shape == (2, 3)


def test_the_other_weights_are_those_of_a_model_without_heads() -> None:
    plain, more = _model().state_dict(), _model(auxiliary={"image": 1.0}).state_dict()
    assert set(more) - set(plain) == {"auxiliary.image.weight", "auxiliary.image.bias"}
    assert all(torch.equal(more[name], value) for name, value in plain.items())


def test_heads_are_counted_and_have_the_rate_of_heads() -> None:
    model = _model(auxiliary={"text": 1.0})
    assert count_parameters(model)["auxiliary"] == (8 * 3 + 3, 0)
    names = [name for name, _ in parameter_groups(model)["head"]]
    assert names[-2:] == ["auxiliary.text.weight", "auxiliary.text.bias"]


def test_the_loss_by_hand_and_no_label_adds_nothing() -> None:
    even = torch.zeros(3, 3)  # cross-entropy log 3 whatever the label
    sure = torch.tensor([[0.0, 0.0, 100.0]] * 3)  # 0 for label 2, 100 for the others
    labels = torch.tensor([[0, 2], [-1, 1], [-1, -1]])
    weights: dict[str, Any] = {"weights": {"text": 0.5, "image": 0.1}}
    found = auxiliary_loss(
        {"text": even, "image": sure},
        labels,
        loss=build_loss("cross_entropy"),
        class_weights=None,
        label_smoothing=0.0,
        **weights,
    )
    assert found.tolist() == pytest.approx([0.5 * math.log(3), 10.0, 0.0], abs=1e-5)


def test_the_gradient_does_not_depend_on_how_a_batch_is_divided() -> None:
    """The sum over samples divided by the real ones: also where micro-batches have unequally many
    labels of their own."""
    labels = torch.tensor([[0, -1], [1, 2], [-1, -1], [2, 0]])
    batch: dict[str, Any] = {
        "labels": torch.tensor([0, 1, 2, 2]),
        "targets": None,
        "modality_labels": labels,
    }
    config = _config(auxiliary={"text": 0.3, "image": 0.2}, class_weights="balanced")
    objective = Objective(config, [2, 1, 1], torch.device("cpu"))
    assert objective.has_auxiliary

    def gradient(cuts: list[slice]) -> torch.Tensor:
        logits = torch.linspace(-1, 1, 36).view(3, 4, 3).requires_grad_()
        for cut in cuts:
            output = (logits[0, cut], {"text": logits[1, cut], "image": logits[2, cut]})
            part = {name: None if v is None else v[cut] for name, v in batch.items()}
            (objective.per_sample(output, part).sum() / 4).backward()
        assert logits.grad is not None
        return logits.grad

    whole = gradient([slice(0, 4)])
    assert whole[1, 2].tolist() == [0, 0, 0]
    assert whole[1, 0].abs().sum() > 0
    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)]), whole)


def test_one_logit_for_two_classes() -> None:
    model = build_model(_config(auxiliary={"text": 1.0}, loss="binary_cross_entropy"), 2)
    assert model(IDS, MASK, IMAGES, auxiliary=True)[1]["text"].shape == (2, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["model.fusion.name=image_only", "model.auxiliary.text=0.3"],
            "model.auxiliary.text=0.3 needs a text encoder, and the fusion image_only uses none; "
            "set model.auxiliary.text=0, or choose another model.fusion.name",
        ),
        (["model.auxiliary.text=-1"], "model.auxiliary.text=-1: Input should be greater than"),
        (["model.auxiliary.txt=1"], "unknown key model.auxiliary.txt; did you mean"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, settings, checks=MODEL_CHECKS)
    assert told in str(refused.value)


def test_files_without_heads_do_not_name_them() -> None:
    assert "auxiliary" not in load_config(None).to_yaml()
    with_heads = load_config(None, ["model.auxiliary.text=0.3"])
    assert "auxiliary:\n    text: 0.3\n    image: 0.0" in with_heads.to_yaml()
