"""Rows that encoders give to fusion heads: which, under which mask, and who has none."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig, ModelConfig, load_config
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.encoder_families import ENCODERS, ImageFamily, Network, register_encoder
from mmsa.models.encoder_probes import probe_encoders
from mmsa.models.fusion.sequences import position_rows
from mmsa.models.model import MODEL_CHECKS, build_model
from mmsa.models.torchvision_encoders import (
    ConvNeXts,
    MobileNets,
    ResNets,
    TorchvisionFamily,
    VisionTransformers,
)
from tests.models.tiny import image_settings, text_settings

SEQUENCE_HEADS = ("cross_attention", "bottleneck")
VIT_SIZES = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    "image_size": 32,
}


def _model(head: str, image: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "text_encoder": text_settings(**more),
        "image_encoder": image,
        "fusion": {"name": head, **({} if head == "concat" else {"width": 8})},
    }
    return build_model(ModelConfig.model_validate(settings), 3)


def test_the_pooler_of_an_encoder_whose_patches_are_used_is_not_trained() -> None:
    model = _model("cross_attention", image_settings(config=VIT_SIZES))
    assert {name.split(".")[1] for name in model.image_encoder.unused} == {"pooler"}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    sequence = model.image_encoder(images)
    assert sequence.rows.shape == (2, 1 + 16, 8)  # the class token and 4 x 4 patches
    assert _model("concat", image_settings(config=VIT_SIZES)).image_encoder.unused == ()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_texts_have_the_rows_of_padded_ones(pooling: str) -> None:
    encoder = _model("bottleneck", image_settings(), pooling=pooling).text_encoder.eval()
    texts = [[2, 5, 7, 3, 9, 8, 6, 4], [2, 9, 3], [2, 4]]
    ids = torch.tensor([text + [0] * (8 - len(text)) for text in texts])
    mask = (ids > 0).long()
    form = encoder.packing().packed(ids, mask)
    assert form is not None
    packed, padded = encoder(ids, mask, form), encoder(ids, mask)
    torch.testing.assert_close(packed.rows[packed.mask], padded.rows[padded.mask])
    assert torch.equal(packed.mask, mask.bool())


def _small_bodies() -> dict[str, tuple[TorchvisionFamily, Any]]:
    """Networks of torchvision's classes, with few parameters."""
    from torchvision.models import ConvNeXt, MobileNetV2, ResNet, VisionTransformer
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.resnet import BasicBlock

    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return {
        "resnet": (ResNets(), ResNet(BasicBlock, [1, 1, 1, 1])),
        "mobilenet": (MobileNets(), MobileNetV2(width_mult=0.1)),
        "vit": (VisionTransformers(), VisionTransformer(64, 32, 1, 2, 8, 16)),
        "convnext": (ConvNeXts(), ConvNeXt(blocks)),
    }


@pytest.mark.parametrize(
    ("name", "num_rows"), [("resnet", 4), ("mobilenet", 4), ("vit", 5), ("convnext", 64)]
)
@torch.no_grad()
def test_rows_of_torchvision_are_what_its_pooled_features_are_made_of(
    name: str, num_rows: int
) -> None:
    torch.manual_seed(0)
    family, body = _small_bodies()[name]
    family.take_apart(body)
    images = torch.randn(2, 3, 64, 64)
    body.eval()
    pooled, rows = body(images), position_rows(family.sequence(body, images))
    assert rows.shape == (2, num_rows, pooled.shape[1])
    if name == "vit":
        torch.testing.assert_close(rows[:, 0], pooled)
    elif name == "convnext":  # whose norm comes after its mean
        mean = position_rows(body.features(images)).mean(dim=1)
        torch.testing.assert_close(body.classifier[0](mean[..., None, None]).flatten(1), pooled)
        assert rows.mean(dim=2).abs().max() < 1e-5
    else:
        torch.testing.assert_close(rows.mean(dim=1), pooled)


def test_an_encoder_by_its_name_gives_rows() -> None:
    config = ImageEncoderConfig(name="resnet18", weights="none", image_size_px=64)
    encoder = build_image_encoder(config, sequences=True)
    rows, mask = encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert rows.shape == (2, 4, 512)
    assert mask.all()
    assert (encoder.width, encoder.unused) == (512, ())
    copied = deepcopy(encoder)  # its rows are those of the copy's own weights
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).rows.any()


@pytest.mark.parametrize("head", SEQUENCE_HEADS)
def test_foreign_encoders_are_tried_by_their_rows(head: str) -> None:
    settings = {"text_encoder": text_settings(), "image_encoder": image_settings()}
    config = ModelConfig.model_validate({**settings, "fusion": {"name": head, "width": 8}})
    torch.manual_seed(0)
    model = build_model(config, 3)
    probe_encoders(model, config, max_tokens=16)
    with torch.no_grad():
        model.text_encoder.body.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="features that are not numbers"):
        probe_encoders(model, config, max_tokens=16)


@pytest.fixture
def rowless() -> Any:
    """A family with one row of features per image."""

    @register_encoder("image", "rowless:")
    class Rowless(ImageFamily):
        is_foreign = False

        def network(self, name: str, settings: Any, image_size_px: int) -> Network:
            return Network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3)

    yield "rowless:one"
    del ENCODERS["image"]["rowless:"]


@pytest.mark.parametrize("head", SEQUENCE_HEADS)
def test_a_head_that_takes_rows_refuses_an_encoder_without(rowless: str, head: str) -> None:
    image = ["model.image_encoder.weights=none", f"model.image_encoder.name={rowless}"]
    with pytest.raises(UserError) as raised:
        load_config(None, [f"model.fusion.name={head}", *image], checks=MODEL_CHECKS)
    message = str(raised.value)
    assert "model.image_encoder.name=rowless:one has one row of features per image" in message
    assert "use a head that takes one row (concat, attention, gated, ...)" in message
    load_config(None, ["model.fusion.name=gated", *image], checks=MODEL_CHECKS)
    with pytest.raises(UserError, match="has one row of features per image"):
        build_image_encoder(ImageEncoderConfig(name=rowless, weights="none"), sequences=True)


def test_a_projection_that_does_not_fit_the_rows_is_refused(monkeypatch: Any) -> None:
    from mmsa.models.hf_image_encoders import HfImageBody

    def narrow(body: HfImageBody, images: Tensor) -> Tensor:
        return body._output(images).last_hidden_state[:, :4]

    monkeypatch.setattr(HfImageBody, "rows", narrow)
    assert _model("bottleneck", image_settings()).image_encoder.width == 4
    with pytest.raises(UserError, match="its rows have 4 features and its pooled output 8"):
        _model("bottleneck", image_settings(projection=5))
