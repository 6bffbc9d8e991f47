"""The model as a whole: logits, losses by hand, groups of parameters, gradients for all of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmsa.config import ModelConfig
from mmsa.errors import UserError
from mmsa.models.model import (
    SentimentModel,
    build_model,
    count_parameters,
    parameter_groups,
    per_sample_loss,
    probabilities,
)
from tests.models.tiny import image_settings, text_settings

IDS = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
IMAGES = torch.arange(2 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(2, 3, 32, 32)


def _model(
    num_classes: int = 3,
    text: dict[str, object] | None = None,
    image: dict[str, object] | None = None,
    **settings: object,
) -> SentimentModel:
    torch.manual_seed(0)
    encoders = {
        "text_encoder": text_settings(**(text or {})),
        "image_encoder": image_settings(**(image or {})),
    }
    return build_model(ModelConfig.model_validate({**encoders, **settings}), num_classes)


FUSIONS: list[dict[str, object]] = [
    {"name": "concat", "hidden": [6], "batch_norm": True},
    {"name": "concat", "hidden": []},
    {"name": "attention", "width": 8, "num_heads": 2, "text_width": 4, "image_width": 6},
    {"name": "attention", "width": 8, "num_heads": 2, "text_width": None, "image_width": None},
    {"name": "text_only"},
    {"name": "image_only"},
    {"name": "gated", "width": 6},
    {"name": "cross_attention", "width": 8, "num_layers": 2, "feedforward": 6, "hidden": [4]},
    {"name": "bottleneck", "width": 8, "num_heads": 2, "feedforward": 6, "num_tokens": 3},
]
TRAINED: list[dict[str, object]] = [
    {"train": "full"},
    {"train": "last_n", "last_n": 1},
    {"train": "frozen"},
    {"train": "frozen", "projection": 5},
]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_trained_parameter_gets_a_gradient(
    fusion: dict[str, object], trained: dict[str, object], pooling: str
) -> None:
    """Distributed training waits for the gradient of each parameter that wants one."""
    model = _model(text={**trained, "pooling": pooling}, image=trained, fusion=fusion).train()
    logits = model(IDS, MASK, IMAGES)
    assert logits.shape == (2, 3)
    per_sample_loss(logits, torch.tensor([0, 2])).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen_with = [
        n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None
    ]
    assert (without, frozen_with) == ([], [])


def test_a_modality_without_use_has_no_encoder() -> None:
    text, image = _model(fusion={"name": "text_only"}), _model(fusion={"name": "image_only"})
    assert text.image_encoder is None
    assert image.text_encoder is None
    assert text(IDS, MASK, None).shape == (2, 3)
    assert image(images=IMAGES).shape == (2, 3)
    assert {key.split(".")[0] for key in text.state_dict()} == {"text_encoder", "fusion"}


def test_one_logit_for_two_classes() -> None:
    assert _model(2, loss="binary_cross_entropy")(IDS, MASK, IMAGES).shape == (2, 1)
    with pytest.raises(UserError, match="needs two classes and there are 3"):
        _model(3, loss="binary_cross_entropy")


def test_parts_are_counted_and_grouped() -> None:
    model = _model(
        text={"train": "last_n", "last_n": 1, "projection": 5}, image={"train": "frozen"}
    )
    counts = count_parameters(model)
    assert list(counts) == [
        "text_encoder.body",
        "text_encoder.projection",
        "image_encoder.body",
        "fusion",
    ]
    # a layer of width 8 and 16: 4 x (8 x 8 + 8) + 2 x 16 of norms + 8 x 16 + 16 + 16 x 8 + 8 = 600
    assert counts["text_encoder.body"].trained == 600
    # two more layers, embeddings of (50 + 16 + 2) x 8 and their norm of 16
    assert counts["text_encoder.body"].frozen == 2 * 600 + 68 * 8 + 16
    assert counts["text_encoder.projection"] == (8 * 5 + 5, 0)
    assert counts["image_encoder.body"].trained == 0
    assert counts["fusion"] == ((5 + 8) * 512 + 512 + 512 * 3 + 3, 0)
    groups = parameter_groups(model)
    sizes = {name: sum(p.numel() for _, p in group) for name, group in groups.items()}
    assert sizes == {"text": 600, "image": 0, "head": 45 + counts["fusion"].trained}
    named = dict(model.named_parameters())
    assert all(named[name] is p for group in groups.values() for name, p in group)
    trained = {name for name, p in named.items() if p.requires_grad}
    assert {name for group in groups.values() for name, _ in group} == trained


LOGITS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
LABELS = torch.tensor([1, 0])


def test_cross_entropy_by_hand() -> None:
    # ln 3 = 1.098612; ln(e^2 + 2) - 2 = 0.239545
    expected = torch.tensor([1.098612, 0.239545])
    torch.testing.assert_close(per_sample_loss(LOGITS, LABELS), expected, rtol=0, atol=2e-6)


def test_class_weights_multiply_each_samples_loss() -> None:
    weights = torch.tensor([2.0, 0.5, 1.0])
    expected = torch.tensor([1.098612 * 0.5, 0.239545 * 2.0])
    losses = per_sample_loss(LOGITS, LABELS, class_weights=weights)
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-6)


def test_label_smoothing_by_hand() -> None:
    # 0.9 x 0.239545 + 0.1 x the mean of 0.239545, 2.239545, 2.239545, which is 1.572878
    losses = per_sample_loss(LOGITS, LABELS, label_smoothing=0.1)
    expected = torch.tensor([1.098612, 0.9 * 0.239545 + 0.1 * (3 * 0.239545 + 4) / 3])
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-6)


def test_binary_cross_entropy_by_hand() -> None:
    logits, labels = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([1, 1, 0])
    # ln 2 = 0.693147; ln(1 + e^-2) = 0.126928; ln(1 + e^2) = 2.126928
    plain = per_sample_loss(logits, labels, loss="binary_cross_entropy")
    torch.testing.assert_close(
        plain, torch.tensor([0.693147, 0.126928, 2.126928]), rtol=0, atol=2e-6
    )
    weighted = per_sample_loss(
        logits, labels, loss="binary_cross_entropy", class_weights=torch.tensor([0.5, 1.5])
    )
    torch.testing.assert_close(weighted, plain * torch.tensor([1.5, 1.5, 0.5]))
    smoothed = per_sample_loss(logits, labels, loss="binary_cross_entropy", label_smoothing=0.2)
    # targets 0.9, 0.9, 0.1: at logit 2 the loss is 0.126928 x t + 2.126928 x (1 - t)
    expected = torch.tensor([0.693147, 0.326928, 1.926928])
    torch.testing.assert_close(smoothed, expected, rtol=0, atol=2e-6)


def test_losses_are_float32_whatever_the_logits() -> None:
    assert per_sample_loss(LOGITS.bfloat16(), LABELS).dtype == torch.float32


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[0.0, 0.0]], [[0.5, 0.5]]),
        ([[0.0, 1.0986123]], [[0.25, 0.75]]),  # ln 3
        ([[1.0986123]], [[0.25, 0.75]]),
        ([[-200.0]], [[1.0, 0.0]]),
    ],
)
def test_probabilities(logits: list[list[float]], expected: list[list[float]]) -> None:
    found: Tensor = probabilities(torch.tensor(logits))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_same_seed_gives_the_same_model() -> None:
    one, other = _model().state_dict(), _model().state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_soft_targets_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]])  # probabilities 1/4, 1/4, 1/2
    half = torch.tensor([[0.5, 0.0, 0.5]])
    losses = per_sample_loss(logits, half)
    assert losses.tolist() == pytest.approx([0.5 * math.log(4) + 0.5 * math.log(2)])
    weighted = per_sample_loss(logits, half, class_weights=torch.tensor([2.0, 1.0, 1.0]))
    assert weighted.tolist() == pytest.approx([1.0 * math.log(4) + 0.5 * math.log(2)])
    # A target that is sure of one class is the label of that class.
    sure = per_sample_loss(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    assert sure.tolist() == pytest.approx(per_sample_loss(logits, torch.tensor([1])).tolist())
    one_logit = per_sample_loss(
        torch.tensor([[math.log(3.0)]]), torch.tensor([[0.25, 0.75]]), loss="binary_cross_entropy"
    )  # probability of the second class 3/4
    assert one_logit.tolist() == pytest.approx([-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))])
