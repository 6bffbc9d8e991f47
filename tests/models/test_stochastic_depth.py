"""Stochastic depth: its probabilities, what it does in training alone, and who has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import StochasticDepth

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.models.blank import blank_weights
from mmsa.models.build_encoders import build_image_encoder

CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 2, 1],
}


def _config(**more: Any) -> ImageEncoderConfig:
    own = {"name": "hf:tiny", "weights": "none", "config": CONVNEXT, "image_size_px": 32}
    return ImageEncoderConfig.model_validate({**own, **more})


def _probabilities(body: torch.nn.Module) -> list[float]:
    modules = [one for one in body.modules() if type(one).__name__ == "ConvNextDropPath"]
    return [one.drop_prob for one in modules]


def test_transformers_distributes_it_over_the_blocks() -> None:
    encoder = build_image_encoder(_config(drop_path=0.4))
    assert _probabilities(encoder.body) == pytest.approx([0.1, 0.2, 0.3, 0.4])  # of 5, first 0
    assert _probabilities(build_image_encoder(_config()).body) == []
    # What an export writes down.
    assert encoder.architecture is not None
    assert encoder.architecture["drop_path_rate"] == 0.4


def test_torchvisions_blocks_rise_linearly() -> None:
    settings = {"name": "convnext_tiny", "config": None}

    def found(**more: Any) -> list[float]:
        with blank_weights():
            encoder = build_image_encoder(_config(**settings, **more))
        return [one.p for one in encoder.body.modules() if isinstance(one, StochasticDepth)]

    own = found()
    assert own == pytest.approx([0.1 * number / 17 for number in range(18)])
    assert found(drop_path=0.1) == pytest.approx(own)
    assert found(drop_path=0.5) == pytest.approx([5 * p for p in own])
    assert set(found(drop_path=0.0)) == {0.0}


def test_only_training_leaves_branches_out() -> None:
    torch.manual_seed(0)
    # The branches of a fresh ConvNeXt are scaled down to 1e-6.
    scaled = {**CONVNEXT, "layer_scale_init_value": 1.0}
    encoder = build_image_encoder(_config(drop_path=0.9, config=scaled))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
    encoder.train()
    features = [encoder(images) for _ in range(8)]
    assert any(not torch.equal(one, features[0]) for one in features)


def test_pretrained_weights_get_it_too(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, ConvNextImageProcessor

    sizes = {key: value for key, value in CONVNEXT.items() if key != "model_type"}
    model = AutoModel.from_config(AutoConfig.for_model("convnext", **sizes, image_size=32))
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path)
    given = _config(name=f"hf:{tmp_path}", weights="pretrained", config=None, drop_path=0.4)
    encoder = build_image_encoder(given)
    assert len(_probabilities(encoder.body)) == 4
    for name, value in model.state_dict().items():
        assert torch.equal(encoder.body.state_dict()[f"model.{name}"], value)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "resnet18", "config": None},
        {"config": {"model_type": "resnet", "hidden_sizes": [4], "depths": [1]}},
    ],
)
def test_an_encoder_without_it_is_refused(settings: dict[str, Any]) -> None:
    with blank_weights(), pytest.raises(UserError, match="has no stochastic depth; take the key"):
        build_image_encoder(_config(**settings, drop_path=0.1))
