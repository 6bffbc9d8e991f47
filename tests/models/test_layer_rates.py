"""Learning rates by layer: which layer each parameter belongs to, and the optimizer's groups."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mmsa.config import ImageEncoderConfig, ModelConfig, OptimConfig
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.layer_rates import layer_shares, require_known_layers
from mmsa.models.model import SentimentModel, build_model, parameter_groups
from mmsa.training.optim import build_optimizer, set_learning_rates
from tests.models.tiny import image_settings, text_settings


def _model(**text: Any) -> SentimentModel:
    encoders = {"text_encoder": text_settings(**text), "image_encoder": image_settings()}
    return build_model(ModelConfig.model_validate({**encoders, "fusion": {"hidden": [4]}}), 3)


def test_rates_fall_from_the_last_layer_to_the_input() -> None:
    """Three layers of BERT below them embeddings, four stages of a ResNet below them a stem."""
    shares = layer_shares(_model(), 0.5)
    found: dict[str, dict[str, float]] = {"text": {}, "image": {}}
    for name, share in shares.items():
        of_layer = re.search(r"encoder\.(?:layer|stages)\.(\d)", name)
        if of_layer is not None:
            found[name.partition("_")[0]][of_layer[1]] = share
    assert found == {
        "text": {"0": 0.25, "1": 0.5, "2": 1.0},
        "image": {"0": 0.125, "1": 0.25, "2": 0.5, "3": 1.0},
    }
    below = {share for name, share in shares.items() if ".embeddings." in name}
    assert below == {0.125}
    assert {share for name, share in shares.items() if ".embedder." in name} == {0.0625}


@pytest.mark.parametrize(
    ("name", "image_size_px", "above", "below"),
    [
        # The final norm takes the output of the last layer; positions precede the first.
        ("vit_b_16", 32, "encoder.ln.weight", "encoder.pos_embedding"),
        ("convnext_tiny", 32, "classifier.0.weight", None),
        ("resnet18", 32, "layer4.1.bn2.weight", "conv1.weight"),
        ("mobilenet_v2", 32, "features.18.0.weight", None),
    ],
)
def test_what_is_outside_the_layers(
    name: str, image_size_px: int, above: str, below: str | None
) -> None:
    from mmsa.models.blank import blank_weights

    with blank_weights():
        encoder = build_image_encoder(
            ImageEncoderConfig(name=name, weights="none", image_size_px=image_size_px)
        )
    shares = layer_shares(SentimentModel(None, encoder, None), 0.5)  # type: ignore[arg-type]
    assert shares[f"image_encoder.body.{above}"] == 1.0
    lowest = 0.5 ** len(encoder.layers)
    if below is not None:
        assert shares[f"image_encoder.body.{below}"] == lowest
    assert min(shares.values()) == (lowest if below else 2 * lowest)


def test_each_layer_has_its_groups_and_the_log_the_largest_rate() -> None:
    model = _model()
    groups = parameter_groups(model)
    config = OptimConfig(text_lr=8e-3, image_lr=4e-3, head_lr=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(groups, config, layer_shares(model, 0.5))
    rates = {(g["part"], g["peak_lr"]) for g in optimizer.param_groups}
    assert rates == {
        *{("text", 8e-3), ("text", 4e-3), ("text", 2e-3), ("text", 1e-3)},
        *{("image", 4e-3 * 0.5**k) for k in range(5)},
        ("head", 1e-3),
    }
    # Each trained parameter is in one group, norms and biases without weight decay.
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for named in groups.values() for _, p in named)
    assert all(
        (group["weight_decay"] > 0) == (parameter.ndim >= 2)
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    assert set_learning_rates(optimizer, 0.5) == {"text": 4e-3, "image": 2e-3, "head": 5e-4}
    assert {g["lr"] for g in optimizer.param_groups if g["part"] == "text"} == {
        *(4e-3, 2e-3, 1e-3, 5e-4)
    }


def test_without_decay_the_groups_are_the_same_as_ever() -> None:
    model = _model(train="last_n", last_n=1)
    config = OptimConfig()
    found = [
        build_optimizer(parameter_groups(model), config, shares).param_groups
        for shares in (None, layer_shares(model, 1.0))
    ]
    assert len(found[0]) == len(found[1]) == 6
    for one, other in zip(*found, strict=True):
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]
        assert one["peak_lr"] == other["peak_lr"]


def test_a_step_moves_each_layer_by_its_rate() -> None:
    """Adam's first step moves every number by its learning rate, whatever the gradient."""
    model = _model()
    shares = layer_shares(model, 0.5)
    config = OptimConfig(text_lr=1e-2, image_lr=1e-2, weight_decay=0.0, eps=1e-12)
    optimizer = build_optimizer(parameter_groups(model), config, shares)
    set_learning_rates(optimizer, 1.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, share in shares.items():
        if name in trained:
            moved = (before[name] - trained[name]).abs().max().item()
            assert moved == pytest.approx(1e-2 * share, rel=1e-3), name


def test_a_trained_encoder_without_known_layers_is_refused() -> None:
    """ALBERT's layers share one set of weights."""
    sizes = {"model_type": "albert", "vocab_size": 50, "embedding_size": 8, "hidden_size": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = _model(config=sizes)
    with pytest.raises(
        UserError, match=r"optim.layer_decay=0.5, but the layers of model.text_encoder are not"
    ):
        require_known_layers(model, 0.5)
    require_known_layers(model, 1.0)
    require_known_layers(_model(config=sizes, train="frozen"), 0.5)
    require_known_layers(_model(), 0.5)
