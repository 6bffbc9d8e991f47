"""Image processors of Hugging Face models: our view does what they do, or they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.data.decoding.image_views import evaluation_view
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.encoders import ImageEncoder
from mmsa.models.hf_image_processors import imitate, read_processor
from mmsa.preprocessing import ImagePreprocessing, Preprocessing

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406)
PLAIN = (0.0, 0.0, 0.0)


def processor(name: str, **options: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessor")(**options)


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# (side, short side before the crop, mean, first of std, squeezes, channels), by the code of each
# class. ConvNeXt resizes to side / crop_pct and crops below 384 px, and squeezes from there on;
# LeViT resizes to 256 / 224 of the side; PoolFormer has a crop_pct of 0.9; EfficientNet divides by
# its deviation twice; an offset of 1 after a factor of 1 / 127.5 and mean 0.5, deviation 0.5 are
# (x / 127.5 - 1 - 0.5) / 0.5 = (x / 255 - 0.75) / 0.25.
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ViT", {}, (224, 224, HALF, 0.5, True, "RGB")),
        ("CLIP", {}, (224, 224, (0.48145466, 0.4578275, 0.40821073), 0.26862954, False, "RGB")),
        ("ConvNext", {"size": {"shortest_edge": 224}}, (224, 256, HALF, 0.5, False, "RGB")),
        ("ConvNext", {"size": {"shortest_edge": 64}}, (64, 73, HALF, 0.5, False, "RGB")),
        ("ConvNext", {}, (384, 384, HALF, 0.5, True, "RGB")),
        ("DeiT", {}, (224, 256, HALF, 0.5, True, "RGB")),
        ("Levit", {}, (224, 256, IMAGENET, 0.229, False, "RGB")),
        ("PoolFormer", {}, (224, 248, IMAGENET, 0.229, False, "RGB")),
        ("MobileNetV1", {}, (224, 256, HALF, 0.5, False, "RGB")),
        (
            "MobileViT",
            {"size": {"shortest_edge": 288}, "crop_size": square(256)},
            (256, 288, PLAIN, 1.0, False, "BGR"),
        ),
        ("PPLCNet", {}, (224, 256, IMAGENET[::-1], 0.225, False, "BGR")),
        ("EfficientNet", {}, (346, 346, HALF, 0.25, True, "RGB")),
        (
            "EfficientNet",
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
            (346, 346, (0.75, 0.75, 0.75), 0.25, True, "RGB"),
        ),
        ("ViT", {"do_normalize": False}, (224, 224, PLAIN, 1.0, True, "RGB")),
        ("ViT", {"do_rescale": False}, (224, 224, (0.5 / 255,) * 3, 0.5 / 255, True, "RGB")),
        ("Siglip", {}, (224, 224, HALF, 0.5, True, "RGB")),
        ("Segformer", {}, (512, 512, IMAGENET, 0.229, True, "RGB")),
    ],
)
def test_what_a_processor_does(name: str, options: dict[str, Any], expected: Any) -> None:
    found = imitate(processor(name, **options), name)
    side, resize_px, mean, first_std, squeezes, channels = expected
    assert (found.image_size_px, found.resize_px) == (side, resize_px)
    assert found.mean == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert found.std[0] == pytest.approx(first_std, rel=1e-4)
    assert (found.squeezes, found.channels) == (squeezes, channels)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Detr", {}, "an image of 523 x 389 px becomes an array of 3 x 800 x"),
        ("ViT", {"do_resize": False}, "becomes an array of 3 x 389 x 523"),
        ("ViT", {"do_resize": False, "do_center_crop": True}, "makes other values than ours, by"),
        ("Owlv2", {}, "makes other values than ours, by"),  # pads at the right and below
        ("MobileViT", {}, "pads images"),  # a crop larger than what it is cut from
        ("VideoMAE", {}, "becomes an array of 1 x 3 x 224 x 224"),
        ("Siglip2", {}, "becomes an array of 256 x 768"),
        ("VitPose", {}, "does not take one image"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(
    name: str, options: dict[str, Any], words: str
) -> None:
    chosen = processor(name, crop_size=square(224), **options) if options else processor(name)
    with pytest.raises(UserError, match=rf"processor of hf:x \({name}ImageProcessor\).*{words}"):
        imitate(chosen, "hf:x")


class Colours(transformers.ViTImageProcessor):  # type: ignore[misc]
    """A ViT's, then a change of the channels."""

    change: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        made = super().__call__(*arguments, **options)
        made["pixel_values"] = type(self).change(made["pixel_values"])
        return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pixels: pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1), "mixes or drops"),
        (lambda pixels: pixels.flip(-1), "pads images, or turns them"),
        (lambda pixels: pixels.transpose(-1, -2), "pads images, or turns them"),
        (lambda pixels: pixels**3, "makes other values than ours"),
        (lambda pixels: -pixels, "mixes or drops"),
        (lambda pixels: pixels[:, [1, 0, 2]], "mixes or drops"),
    ],
)
def test_processors_with_a_trick(monkeypatch: pytest.MonkeyPatch, change: Any, words: str) -> None:
    monkeypatch.setattr(Colours, "change", staticmethod(change))
    with pytest.raises(UserError, match=words):
        imitate(Colours(), "hf:x")


def photo(height: int, width: int) -> Tensor:
    """An image that no test in the product uses: noise of a low frequency, (3, H, W) uint8."""
    noise = np.random.default_rng(height * width).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    rows = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(rows.copy()).permute(2, 0, 1)


def encoder_input(image: Tensor, found: ImagePreprocessing, view: Any) -> Tensor:
    """What an encoder of `found` gets of `image`: our view, normalised by it."""
    body = nn.Flatten()
    encoder = ImageEncoder(body, body_width=1, projection=None, preprocessing=found)
    shown = evaluation_view(image, Preprocessing(image=found, image_view=view))
    return encoder.normalise(shown[None])[0]


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["ConvNext", "DeiT", "MobileViT", "CLIP"]),
    side=st.integers(48, 288),
    part=st.floats(0.75, 1.0),
    resample=st.sampled_from([2, 3]),
    mean=st.floats(0.2, 0.6),
    size=st.sampled_from([(311, 433), (433, 311), (301, 301), (640, 480)]),
)
def test_the_encoder_gets_what_its_processor_makes(
    name: str, side: int, part: float, resample: int, mean: float, size: tuple[int, int]
) -> None:
    larger = int(side / part)
    options: dict[str, Any] = {"resample": resample, "image_mean": [mean, 0.5, 0.4]}
    if name == "ConvNext":
        options |= {"size": {"shortest_edge": side}, "crop_pct": part}
    elif name == "DeiT":
        options |= {"size": square(larger), "crop_size": square(side)}
    else:
        options |= {"size": {"shortest_edge": larger}, "crop_size": square(side)}
    chosen = processor(name, **options)
    found = imitate(chosen, name)
    image = photo(*size)
    own = chosen(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
    view = "whole" if found.squeezes else "crop"
    difference = (encoder_input(image, found, view) - own["pixel_values"][0]).abs()
    # In levels of brightness: a shift of half a pixel of the input, at 6 waves over the image.
    levels = difference * torch.tensor(found.std)[:, None, None] * 255
    assert float(levels.mean()) < 1 + 300 / side
    assert float(levels.max()) < 16 + 1500 / side


def test_a_directory_brings_its_processor(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    AutoModel.from_config(AutoConfig.for_model("convnext", **sizes)).save_pretrained(tmp_path)
    processor("ConvNext", size={"shortest_edge": 64}).save_pretrained(tmp_path)
    assert read_processor(str(tmp_path)).resize_px == 73
    config = ImageEncoderConfig.model_validate({"name": f"hf:{tmp_path}"})
    assert build_image_encoder(config).preprocessing == read_processor(str(tmp_path))
    twice = ImageEncoderConfig.model_validate({"name": f"hf:{tmp_path}", "image_size_px": 128})
    assert build_image_encoder(twice).preprocessing.resize_px == 146
    processor("Detr").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(DetrImageProcessor\) cannot be reproduced"):
        build_image_encoder(config)
