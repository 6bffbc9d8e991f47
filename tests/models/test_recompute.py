"""Gradient checkpointing changes memory and nothing else; BatchNorm's modes; names of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsa.config import Config, load_config
from mmsa.errors import UserError
from mmsa.models.model import SentimentModel, build_model
from mmsa.models.recompute import recompute_in_backward

BERT = (
    "model.text_encoder.config={model_type: bert, hidden_size: 16, num_hidden_layers: 3, "
    "num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 32}"
)
HF_RESNET = (
    "model.image_encoder.config={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}"
)


def model_of(*settings: str) -> SentimentModel:
    config: Config = load_config(
        None,
        [
            *["model.text_encoder.weights=none", BERT, "model.image_encoder.weights=none"],
            *["model.image_encoder.image_size_px=32", "model.fusion.hidden=[8]", *settings],
        ],
    )
    torch.manual_seed(3)
    return build_model(config.model, 3, vocab_size=50)


def one_backward(model: SentimentModel) -> dict[str, Tensor]:
    """Gradients and buffers after one micro-batch in training mode, dropout on."""
    model.train()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 50, (4, 6), generator=generator)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    torch.manual_seed(7)
    model(ids, torch.ones_like(ids), images).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, **dict(model.named_buffers())}


@pytest.mark.parametrize(
    "image_encoder",
    [
        ["model.image_encoder.name=hf:tiny", HF_RESNET],
        ["model.image_encoder.name=resnet18"],
        ["model.image_encoder.name=mobilenet_v2"],
        ["model.image_encoder.name=convnext_tiny"],
    ],
)
def test_layers_computed_twice_give_the_same_bits(image_encoder: list[str]) -> None:
    twice = ["model.text_encoder.gradient_checkpointing=true"]
    twice += ["model.image_encoder.gradient_checkpointing=true"]
    plain = model_of(*image_encoder)
    recomputed = model_of(*image_encoder, *twice)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    expected, found = one_backward(plain), one_backward(recomputed)
    assert found.keys() == expected.keys()
    assert any(name.endswith("running_mean") for name in found) != ("convnext" in image_encoder[0])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_layers_are_really_computed_twice() -> None:
    model = model_of(
        *["model.image_encoder.name=resnet18", "model.text_encoder.gradient_checkpointing=true"],
        "model.image_encoder.gradient_checkpointing=true",
    )
    calls = {"text": 0, "image": 0}

    def count(kind: str) -> Any:
        def hook(*_: Any) -> None:
            calls[kind] += 1

        return hook

    body: Any = model.text_encoder.body if model.text_encoder else None
    body.encoder.layer[1].attention.register_forward_hook(count("text"))
    picture: Any = model.image_encoder.body if model.image_encoder else None
    picture.layer3[0].conv1.register_forward_hook(count("image"))
    one_backward(model)
    assert calls == {"text": 2, "image": 2}


def test_a_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale() -> None:
    model = model_of("model.image_encoder.name=resnet18", "model.image_encoder.batch_norm=frozen")
    before = {name: value.clone() for name, value in model.named_buffers()}
    after = one_backward(model)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert float(after["image_encoder.body.bn1.weight"].abs().sum()) > 0
    model.eval()
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) == 20
    assert not any(norm.training for norm in norms)


def test_an_encoder_without_known_layers_says_so() -> None:
    with pytest.raises(UserError, match=r"model.text_encoder.gradient_checkpointing=true, but"):
        recompute_in_backward([], section="model.text_encoder")


class Layer(nn.Module):
    """A BatchNorm and dropout; with `breaks` torch cannot compile it as one graph."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.breaks = breaks

    def forward(self, rows: Tensor) -> Tensor:
        found = nn.functional.dropout(torch.tanh(self.norm(self.linear(rows))), 0.4)
        if self.breaks:
            torch._dynamo.graph_break()
        return rows + found * found


def of_layers(breaks: bool, *, recomputed: bool, compiled: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after one micro-batch, and the bytes kept for the backward pass."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = nn.Sequential(*(Layer(breaks) for _ in range(3))).double()
    if recomputed:
        recompute_in_backward(list(model), section="model.text_encoder")
    if compiled:
        model.compile(backend="aot_eager_decomp_partition")  # all but the code generator
    rows = torch.randn(512, 6, dtype=torch.double)
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(rows)
    found.sin().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, **dict(model.named_buffers())}, kept


@pytest.mark.parametrize("breaks", [False, True])
def test_compiled_layers_are_computed_twice_too(breaks: bool) -> None:
    # Compiled dropout draws other numbers, and a layer that breaks the graph runs uncompiled.
    expected, all_kept = of_layers(breaks, recomputed=False, compiled=not breaks)
    found, kept = of_layers(breaks, recomputed=True, compiled=True)
    torch._dynamo.reset()
    assert found.keys() == expected.keys()
    assert int(found["0.norm.num_batches_tracked"]) == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert kept < all_kept, (kept, all_kept)
