"""From JPEG bytes to the uint8 square that an encoder takes.

Legend: B batch; H, W height and width of a packed image; S the encoder's input side, in pixels.
Images have the shape (3, H, W), but stay rows of RGB pixels in memory, as they are decoded (torch's
channels_last): separate channels would cost a slow copy and a slower resize. Normalisation happens
on the device, inside the image encoder.
"""

from __future__ import annotations

from collections.abc import Iterable

import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmsa.data.decoding.limits import MOST_PIXELS_IN_SHARDS
from mmsa.data.decoding.pixels import Pixels, upright
from mmsa.data.decoding.posted_images import Content, decode_image
from mmsa.foundation.hashed_random import stream_key, uniforms
from mmsa.preprocessing import ImagePreprocessing, Preprocessing

_JPEG_START = b"\xff\xd8\xff"
# Markers: Exif or XMP; Adobe's; fill bytes; start of scan.
_APP1, _APP14, _FILL, _SOS = 0xE1, 0xEE, 0xFF, 0xDA


def decode(content: Content) -> Tensor:
    """Bytes of an image to uint8 (3, H, W), RGB. Raises `ValueError` if they do not decode.

    Packed images are plain JPEGs and take a fast path. Tars packed by other programs may hold any
    type, an orientation or CMYK; these are decoded like raw images in packing.
    """
    rows = _plain_jpeg(content)
    if rows is None:
        pixels, header = decode_image(content, max_pixels=MOST_PIXELS_IN_SHARDS)
        rows = upright(pixels, header.orientation).copy()  # Pillow's memory is read-only
    return torch.from_numpy(rows).permute(2, 0, 1)


def _plain_jpeg(content: Content) -> Pixels | None:
    """The pixels (H, W, 3) of a plain JPEG without a fault; None for all else, which packing's
    decoder then judges: it takes some JPEGs that this one calls damaged, and they are in shards."""
    if not _is_plain_jpeg(content):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        if height * width > MOST_PIXELS_IN_SHARDS:
            return None
        rows: Pixels = simplejpeg.decode_jpeg(content, colorspace="RGB")
    except ValueError:
        return None
    return rows


def empty_batch(num_images: int, preprocessing: Preprocessing) -> Tensor:
    """Memory for a batch: uint8 (B, 3, S, S), channels_last.

    Copying views into it, which are rows of pixels too, is ten times as fast as `torch.stack`.
    """
    side = _image_settings(preprocessing).image_size_px
    return torch.empty(num_images, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)


def stacked(views: Iterable[Tensor], num_images: int, preprocessing: Preprocessing) -> Tensor:
    """The views (3, S, S), `num_images` of them, as one batch (B, 3, S, S), channels_last.

    Each view is copied before the next is made, so that decoding reuses its memory.
    """
    batch = empty_batch(num_images, preprocessing)
    for row, view in zip(batch, views, strict=True):
        row.copy_(view)
    return batch


def _is_plain_jpeg(content: Content) -> bool:
    """Whether any decoder shows these bytes as intended: a JPEG without a segment before its scan
    that could hold an orientation (Exif) or mark it as CMYK (Adobe)."""
    if content[:3] != _JPEG_START:
        return False
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _SOS:
            return True
        if marker in (_APP1, _APP14, _FILL):
            return False
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")  # the length counts itself
    return False


def evaluation_view(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The centre square of an image (3, H, W), or all of it, as uint8 (3, S, S)."""
    settings = _image_settings(preprocessing)
    height, width = image.shape[1:]
    if preprocessing.image_view == "whole":
        return _resized(_whole(image, settings), settings)
    side = _crop_side(height, width, settings)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(image[:, top : top + side, left : left + side], settings)


def training_view(
    image: Tensor,
    preprocessing: Preprocessing,
    *,
    seed: int,
    epoch: int,
    sample: int,
    min_crop_scale: float,
    flip_probability: float,
) -> Tensor:
    """A random square of an image (3, H, W), mirrored at random, as uint8 (3, S, S).

    The draws depend only on (seed, epoch, sample), where `sample` is the hash of the key: any
    worker of any rank makes the same tensor.
    """
    settings = _image_settings(preprocessing)
    draws = uniforms(stream_key("augment", seed, epoch, sample), 4)
    height, width = image.shape[1:]
    if preprocessing.image_view == "crop":
        side = _crop_side(height, width, settings)
        side = max(1, round(side * (min_crop_scale + (1 - min_crop_scale) * draws[0])))
        top = int(draws[1] * (height - side + 1))
        left = int(draws[2] * (width - side + 1))
        image = image[:, top : top + side, left : left + side]
    else:
        image = _whole(image, settings)
    view = _resized(image, settings)
    return view.flip(-1) if draws[3] < flip_probability else view


def _image_settings(preprocessing: Preprocessing) -> ImagePreprocessing:
    assert preprocessing.image is not None, "a model without an image encoder decodes no images"
    return preprocessing.image


def _whole(image: Tensor, settings: ImagePreprocessing) -> Tensor:
    """All of an image, or what an encoder's processor leaves of it that squeezes before it crops.

    DeiT squeezes to 256 x 256 px and cuts 224 x 224 px from the centre.
    """
    if not settings.squeezes:
        return image
    height, width = image.shape[1:]
    share = min(1.0, settings.image_size_px / settings.resize_px)
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[:, top : top + rows, left : left + columns]


def _crop_side(height: int, width: int, settings: ImagePreprocessing) -> int:
    """The side of the square that, resized to S, equals 'resize the short side, then crop'.

    Settings whose crop is larger than the resized image (S above `resize_px`) get the whole short
    side.
    """
    short = min(height, width)
    return min(short, max(1, round(short * settings.image_size_px / settings.resize_px)))


def _resized(image: Tensor, settings: ImagePreprocessing) -> Tensor:
    side = settings.image_size_px
    if image.shape[1:] == (side, side):
        return image
    pixels = image[None].contiguous(memory_format=torch.channels_last)
    if settings.interpolation == "nearest":
        return interpolate(pixels, size=(side, side), mode="nearest-exact")[0]
    resized = interpolate(
        pixels,
        size=(side, side),
        mode=settings.interpolation,
        antialias=True,
        align_corners=False,
    )
    return resized[0]
