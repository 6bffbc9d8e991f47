"""Views of images: exact where no resize is needed, and a function of what they should be."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from packed import picture
from PIL import Image
from torch import Tensor

from mmsa.data.decoding.image_views import decode, evaluation_view, training_view
from mmsa.preprocessing import ImagePreprocessing, Preprocessing


def settings(size_px: int, resize_px: int, **changes: Any) -> Preprocessing:
    return Preprocessing(
        image=ImagePreprocessing(image_size_px=size_px, resize_px=resize_px), **changes
    )


def numbered(height: int, width: int) -> Tensor:
    """An image (3, H, W) that tells its places apart: channels are row, column, and 7."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, :].expand(height, width)
    return torch.stack([rows, columns, torch.full((height, width), 7, dtype=torch.uint8)])


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def training(image: Tensor, preprocessing: Preprocessing, **changes: Any) -> Tensor:
    arguments = {
        "seed": 0,
        "epoch": 0,
        "sample": 1,
        "min_crop_scale": 1.0,
        "flip_probability": 0.5,
        **changes,
    }
    return training_view(image, preprocessing, **arguments)


# Decoding.


def test_a_jpeg_decodes_as_pillow_does() -> None:
    content = picture(3)
    decoded = decode(content)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, 32, 40)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.array(image.convert("RGB")).astype(int)
    # Two builds of the same decoder may round the last bit of a colour differently.
    assert np.abs(decoded.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 4


def test_a_grey_jpeg_becomes_three_equal_channels() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    decoded = decode(encoded(grey, "JPEG"))
    assert decoded.shape == (3, 8, 8)
    assert torch.equal(decoded[0], decoded[1])
    assert torch.equal(decoded[0], decoded[2])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1"])
def test_a_png_keeps_its_pixels(mode: str) -> None:
    image = Image.new("RGB", (5, 3), (255, 255, 255))
    image.putpixel((4, 0), (0, 0, 0))
    decoded = decode(encoded(image.convert(mode), "PNG"))
    assert decoded.shape == (3, 3, 5)
    assert decoded.permute(1, 2, 0).is_contiguous()  # rows of pixels, as a JPEG's
    assert decoded[:, 0, 4].tolist() == [0, 0, 0]
    assert int((decoded == 255).sum()) == 3 * 14


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"\xff\xd8\xff",
        picture(0)[:400],
        encoded(Image.new("RGB", (64, 64), (1, 2, 3)), "PNG")[:60],
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + b"\0" * 20,
    ],
    ids=["empty", "text", "three bytes", "cut JPEG", "cut PNG", "PNG signature", "huge GIF"],
)
def test_what_does_not_decode_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError) as refused:
        decode(content)
    assert "\n" not in str(refused.value)


def test_damaged_images_decode_or_are_value_errors() -> None:
    rng = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    originals = [encoded(Image.fromarray(noise), form) for form in ("JPEG", "PNG", "GIF")]
    refused = 0
    for _ in range(400):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(min(len(content), 900))] = rng.randrange(256)
        try:
            assert decode(bytes(content)).shape[0] == 3
        except ValueError:
            refused += 1
    assert 0 < refused < 400


# The evaluation's view.


def test_the_centre_is_cut_out_exactly_where_no_resize_is_needed() -> None:
    view = evaluation_view(numbered(32, 40), settings(24, 32))
    assert view.shape == (3, 24, 24)
    assert view[0, :, 0].tolist() == list(range(4, 28))
    assert view[1, 0, :].tolist() == list(range(8, 32))
    assert view[2].unique().tolist() == [7]


def test_the_square_input_of_the_same_size_is_the_image_itself() -> None:
    image = numbered(24, 24)
    assert torch.equal(evaluation_view(image, settings(24, 24)), image)
    assert torch.equal(evaluation_view(image, settings(24, 32, image_view="whole")), image)


def test_the_view_is_that_of_resizing_first_and_cutting_then() -> None:
    # The usual order: short side to 32, centre 24. Here a square of 24/32 of the short side is cut
    # out and resized once; on a smooth image both agree to the rounding.
    rows = torch.linspace(0, 255, 64)[:, None].expand(64, 96)
    image = rows.to(torch.uint8)[None].repeat(3, 1, 1)
    view = evaluation_view(image, settings(24, 32))
    usual = torch.nn.functional.interpolate(
        image[None].float(), size=(32, 48), mode="bilinear", antialias=True
    )[0, :, 4:28, 12:36]
    assert (view.float() - usual).abs().max() <= 3


def test_the_whole_view_holds_the_edges() -> None:
    image = torch.zeros(3, 30, 90, dtype=torch.uint8)
    image[:, :, :15] = 200
    image[:, :, -15:] = 100
    whole = evaluation_view(image, settings(24, 32, image_view="whole"))
    assert whole.shape == (3, 24, 24)
    assert whole[:, :, 0].unique().tolist() == [200]
    assert whole[:, :, -1].unique().tolist() == [100]
    cut = evaluation_view(image, settings(24, 32))
    assert cut.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("height", "width"), [(10, 12), (1, 1), (57, 344), (300, 50), (48, 8), (23, 24)]
)
@pytest.mark.parametrize("image_view", ["crop", "whole"])
def test_any_size_becomes_the_input_square(height: int, width: int, image_view: str) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    preprocessing = settings(24, 28, image_view=image_view)
    for view in (
        evaluation_view(image, preprocessing),
        *(training(image, preprocessing, sample=n, min_crop_scale=0.3) for n in range(20)),
    ):
        assert view.shape == (3, 24, 24)
        assert view.dtype == torch.uint8
        assert view.unique().tolist() == [77]


def test_an_input_larger_than_its_short_side_takes_the_whole_short_side() -> None:
    # Settings of a foreign export: the cut cannot be larger than the image.
    image = torch.full((3, 20, 30), 9, dtype=torch.uint8)
    assert evaluation_view(image, settings(24, 16)).unique().tolist() == [9]
    assert training(image, settings(24, 16)).unique().tolist() == [9]


def test_bicubic_and_bilinear_differ() -> None:
    image = decode(picture(5))
    bilinear = settings(48, 48)
    assert bilinear.image is not None
    bicubic = Preprocessing(image=bilinear.image.model_copy(update={"interpolation": "bicubic"}))
    assert not torch.equal(evaluation_view(image, bilinear), evaluation_view(image, bicubic))


def test_nearest_takes_pixels_as_they_are() -> None:
    image = numbered(40, 40)
    plain = settings(20, 20)
    assert plain.image is not None
    nearest = Preprocessing(image=plain.image.model_copy(update={"interpolation": "nearest"}))
    view = evaluation_view(image, nearest)
    assert torch.equal(view, image[:, 1::2, 1::2])
    assert not torch.equal(evaluation_view(image, plain), view)


def test_the_whole_view_of_an_encoder_that_squeezes_before_it_crops() -> None:
    image = numbered(64, 32)
    whole = settings(24, 32, image_view="whole")
    assert whole.image is not None
    squeezed = whole.image.model_copy(update={"squeezes": True})
    cropped = whole.model_copy(update={"image": squeezed})
    # 24 of 32: three quarters of both sides, from the centre.
    expected = evaluation_view(image[:, 8:56, 4:28], whole)
    assert torch.equal(evaluation_view(image, cropped), expected)
    assert torch.equal(training(image, cropped, flip_probability=0.0), expected)
    assert not torch.equal(evaluation_view(image, whole), expected)
    crop = settings(24, 32)
    assert crop.image is not None
    also = Preprocessing(image=crop.image.model_copy(update={"squeezes": True}))
    assert torch.equal(evaluation_view(image, also), evaluation_view(image, crop))


# The training's view.


def test_the_view_is_a_function_of_seed_epoch_and_sample() -> None:
    image, preprocessing = numbered(64, 80), settings(16, 32)
    base = training(image, preprocessing)
    assert torch.equal(training(image, preprocessing), base)
    for change in ({"seed": 1}, {"epoch": 1}, {"sample": 2}):
        assert not torch.equal(training(image, preprocessing, **change), base)


def test_the_number_of_threads_does_not_matter() -> None:
    image, preprocessing = decode(picture(1, width=400, height=256)), settings(224, 256)
    before = torch.get_num_threads()
    try:
        views = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            views.append(training(image, preprocessing, min_crop_scale=0.5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(views[0], views[1])


def test_crops_lie_anywhere_inside() -> None:
    image, preprocessing = numbered(32, 40), settings(24, 32)
    corners = set()
    for sample in range(2000):
        view = training(image, preprocessing, sample=sample, flip_probability=0.0)
        top, left = int(view[0, 0, 0]), int(view[1, 0, 0])
        assert view[0, :, 0].tolist() == list(range(top, top + 24))
        assert view[1, 0, :].tolist() == list(range(left, left + 24))
        corners.add((top, left))
    assert corners == {(top, left) for top in range(9) for left in range(17)}


def test_smaller_crops_are_enlarged() -> None:
    image, preprocessing = numbered(32, 32), settings(24, 32)
    spans = []
    for sample in range(200):
        view = training(image, preprocessing, sample=sample, min_crop_scale=0.5)
        spans.append(int(view[0].max()) - int(view[0].min()))
    assert min(spans) <= 13
    assert max(spans) == 23


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0, 0, 0), (0.5, 930, 1070), (1, 2000, 2000)]
)
@pytest.mark.parametrize("image_view", ["crop", "whole"])
def test_images_are_mirrored_as_often_as_set(
    probability: float, least: int, most: int, image_view: str
) -> None:
    # 2,000 draws at 0.5: deviation 22, the bounds are three of them.
    image, preprocessing = numbered(24, 24), settings(24, 24, image_view=image_view)
    mirrored = 0
    for sample in range(2000):
        view = training(image, preprocessing, sample=sample, flip_probability=probability)
        mirrored += int(view[1, 0, 0]) == 23
    assert least <= mirrored <= most
