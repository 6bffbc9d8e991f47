"""Image encoders: normalisation, what is trained, what keeps its statistics, other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.encoders import ImageEncoder
from mmsa.models.hf_image_encoders import HfImageBody
from tests.models.tiny import IMAGE_SIZES, image_settings


def _image(**more: object) -> ImageEncoder:
    torch.manual_seed(0)
    return build_image_encoder(ImageEncoderConfig.model_validate(image_settings(**more)))


def _pictures(batch: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)


def test_projection_sets_the_width() -> None:
    encoder = _image(projection=6)
    assert encoder.width == 6
    assert encoder(_pictures(2, 32)).shape == (2, 6)


def test_normalisation_by_hand() -> None:
    encoder = _image()
    picture = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    # (0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    expected = torch.tensor([-2.117904, 2.428571, -0.915556]).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder.normalise(picture), expected, rtol=1e-5, atol=1e-6)
    assert "mean" not in encoder.state_dict()


def test_blue_comes_first_where_the_encoder_wants_it() -> None:
    encoder = _image()
    picture = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    rgb = encoder.normalise(picture)
    encoder.preprocessing = encoder.preprocessing.model_copy(update={"channels": "BGR"})
    assert encoder.normalise(picture).flatten().tolist() == rgb.flatten().tolist()[::-1]


def test_normalisation_keeps_channels_last_and_float32_under_autocast() -> None:
    encoder = _image(config={**IMAGE_SIZES, "hidden_sizes": [16, 16, 16, 16]})
    pictures = _pictures(2, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised = encoder.normalise(pictures)
        features = encoder(pictures)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert features.shape == (2, 16)


def test_frozen_pictures_keep_their_statistics() -> None:
    encoder = _image(train="frozen").train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(_pictures(4, 32))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    trained = _image(train="full").train()
    trained(_pictures(4, 32))
    name = next(key for key in before if key.endswith("running_mean"))
    assert not torch.equal(trained.get_buffer(name), before[name])


def test_last_stage_of_resnet18_alone_is_trained() -> None:
    encoder = _torchvision("resnet18", train="last_n", last_n=1).train()
    trained = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"layer4"}
    below = encoder.body.layer3[0].bn1.running_mean.clone()
    above = encoder.body.layer4[0].bn1.running_mean.clone()
    encoder(_pictures(2, 64))
    assert torch.equal(encoder.body.layer3[0].bn1.running_mean, below)
    assert not torch.equal(encoder.body.layer4[0].bn1.running_mean, above)


def _torchvision(name: str, **more: object) -> ImageEncoder:
    settings = {"name": name, "weights": "none", **more}
    return build_image_encoder(ImageEncoderConfig.model_validate(settings))


# Parameters without the classifier, from the published totals (with 1,000 classes) less that
# linear layer, D x 1000 + 1000: ResNet-18 11,689,512 - 513,000; ResNet-34 21,797,672 - 513,000;
# ResNet-50 25,557,032 - 2,049,000; MobileNetV2 3,504,872 - 1,281,000; ViT-B/16 86,567,656 -
# 769,000; ConvNeXt-T 28,589,128 - 769,000. Resize and interpolation are of torchvision's recipes.
@pytest.mark.parametrize(
    ("name", "width", "parameters", "resize_px"),
    [
        ("resnet18", 512, 11_176_512, 256),
        ("resnet34", 512, 21_284_672, 256),
        ("resnet50", 2048, 23_508_032, 232),
        ("mobilenet_v2", 1280, 2_223_872, 232),
        ("vit_b_16", 768, 85_798_656, 256),
        ("convnext_tiny", 768, 27_820_128, 236),
    ],
)
def test_torchvision_encoders(name: str, width: int, parameters: int, resize_px: int) -> None:
    encoder = _torchvision(name).eval()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.width == width
    brought = encoder.preprocessing
    assert (brought.image_size_px, brought.resize_px) == (224, resize_px)
    assert (brought.mean, brought.interpolation) == ((0.485, 0.456, 0.406), "bilinear")
    with torch.no_grad():
        assert encoder(_pictures(1, 224)).shape == (1, width)


# The last stage's parameters: ViT a layer (4 x 768^2 + 2 x 768 x 3072 + biases 6912 + norms 3072
# = 7,087,872) and the final norm 1,536; MobileNetV2 its last block, 320 x 1280 + 2 x 1280;
# ConvNeXt 3 blocks of 768 (each 49 x 768 + 2 x 768 x 3072 + 3072 + 4 x 768 + 768 = 4,763,136 with
# convolution and linear biases, norm, scale), the downsampling (2 x 384 + 4 x 384 x 768 + 768) and
# the final norm 1,536.
@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("mobilenet_v2", 412_160),
        ("vit_b_16", 7_089_408),
        ("convnext_tiny", 3 * 4_763_136 + 768 + 1_179_648 + 768 + 1_536),
    ],
)
def test_last_stage_of_other_families(name: str, trained: int) -> None:
    encoder = _torchvision(name, train="last_n", last_n=1)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == trained


def test_another_input_size() -> None:
    encoder = _torchvision("resnet18", image_size_px=112).eval()
    assert (encoder.preprocessing.image_size_px, encoder.preprocessing.resize_px) == (112, 128)
    assert encoder(_pictures(1, 112)).shape == (1, 512)
    with pytest.raises(UserError, match="does not take images of 100 px"):
        _torchvision("vit_b_16", image_size_px=100)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet_50"}, "did you mean resnet50"),
        ({"name": "qqqqq"}, "known: convnext_base"),
        ({"name": "resnet18", "config": {"a": 1}}, "Take the key out"),
    ],
)
def test_wrong_names_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _torchvision(**settings)


# Types that pool in three ways: to (B, D, 1, 1), to a row, and not at all; the last is also the one
# with a parameter that no feature depends on.
@pytest.mark.parametrize(
    ("sizes", "width", "unused"),
    [
        (IMAGE_SIZES, 8, ()),
        (
            {
                "model_type": "vit",
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            8,
            (),
        ),
        (
            {"model_type": "convnext", "hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]},
            8,
            (),
        ),
        (
            {
                "model_type": "dinov2",
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_ratio": 2,
            },
            8,
            ("model.embeddings.mask_token",),
        ),
    ],
)
def test_hugging_face_pictures(
    sizes: dict[str, object], width: int, unused: tuple[str, ...]
) -> None:
    encoder = _image(config=sizes, image_size_px=64).train()
    assert encoder.width == width
    assert encoder.unused == unused
    features = encoder(_pictures(2, 64))
    assert features.shape == (2, width)
    features.sum().backward()
    assert [name for name, p in encoder.body.named_parameters() if p.grad is None] == list(unused)


def test_without_a_pooled_output_the_mean_over_tokens_is_taken() -> None:
    class Tokens(nn.Module):
        def forward(self, pixel_values: Tensor) -> object:
            output = type("Output", (), {})()
            output.last_hidden_state = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
            return output

    assert HfImageBody(Tokens())(torch.zeros(1, 3, 2, 2)).tolist() == [[2.0, 4.0]]
