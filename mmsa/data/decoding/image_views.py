"""Pictures between JPEG bytes and the uint8 square that an encoder takes.

Legend: B batch; H, W height and width of a packed picture; S the encoder's input side, all in
pixels. Pictures are (3, H, W) by their shape and rows of RGB pixels in memory, as they are decoded
(torch's channels_last), all the way: channels apart would cost a slow copy and a slower resize.
Normalisation is not done here but on the device, inside the image encoder.
"""

from __future__ import annotations

from collections.abc import Iterable

import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmsa.data.decoding.posted_images import Content, decode_image, upright
from mmsa.hashed_random import stream_key, uniforms
from mmsa.preprocessing import ImagePreprocessing, Preprocessing

_JPEG_START = b"\xff\xd8\xff"
# Markers: Exif or XMP; Adobe's; bytes that fill up; start of scan.
_APP1, _APP14, _FILL, _SOS = 0xE1, 0xEE, 0xFF, 0xDA
_MOST_PIXELS = 1 << 26  # 8192 x 8192; a damaged header may ask for 12 GiB


def decode(content: Content) -> Tensor:
    """Bytes of a picture to uint8 (3, H, W), RGB. Raises `ValueError` where they do not decode.

    Packed pictures are plain JPEGs and take the short way; tars packed by others may hold any type,
    an orientation or CMYK, and are decoded as packing decodes raw pictures.
    """
    if _is_plain_jpeg(content):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            if height * width > _MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {_MOST_PIXELS}")
            rows = simplejpeg.decode_jpeg(content, colorspace="RGB")  # (H, W, 3)
        except ValueError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        return torch.from_numpy(rows).permute(2, 0, 1)
    pixels, header = decode_image(content)
    rows = upright(pixels, header.orientation)
    return torch.from_numpy(rows.copy()).permute(2, 0, 1)  # Pillow's memory is read-only


def stacked(views: Iterable[Tensor], number: int, preprocessing: Preprocessing) -> Tensor:
    """`number` views (3, S, S) as one batch (B, 3, S, S), channels_last.

    Rows of pixels are copied as they lie, ten times as fast as a stack of permuted views, and each
    view before the next is asked for, so that its picture's memory is used again.
    """
    side = _image_settings(preprocessing).image_size_px
    batch = torch.empty(number, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, view in zip(batch, views, strict=True):
        row.copy_(view)
    return batch


def _is_plain_jpeg(content: Content) -> bool:
    """Whether any decoder shows a JPEG as it is meant: no segment before its scan may hold an
    orientation (Exif) or say that it is CMYK (Adobe). False for whatever is not quite a JPEG."""
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


def evaluation_view(picture: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The centre square of the picture (3, H, W), or all of it, as uint8 (3, S, S)."""
    image = _image_settings(preprocessing)
    height, width = picture.shape[1:]
    if preprocessing.image_view == "whole":
        return _resized(picture, image)
    side = _crop_side(height, width, image)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(picture[:, top : top + side, left : left + side], image)


def training_view(
    picture: Tensor,
    preprocessing: Preprocessing,
    *,
    seed: int,
    epoch: int,
    sample: int,
    min_crop_scale: float,
    flip_probability: float,
) -> Tensor:
    """A random square of the picture (3, H, W), perhaps mirrored, as uint8 (3, S, S).

    The draws are a function of (seed, epoch, sample), `sample` being the key's hash: the same
    tensor comes from any worker of any rank.
    """
    image = _image_settings(preprocessing)
    draws = uniforms(stream_key("augment", seed, epoch, sample), 4)
    height, width = picture.shape[1:]
    if preprocessing.image_view == "crop":
        side = _crop_side(height, width, image)
        side = max(1, round(side * (min_crop_scale + (1 - min_crop_scale) * draws[0])))
        top = int(draws[1] * (height - side + 1))
        left = int(draws[2] * (width - side + 1))
        picture = picture[:, top : top + side, left : left + side]
    view = _resized(picture, image)
    return view.flip(-1) if draws[3] < flip_probability else view


def _image_settings(preprocessing: Preprocessing) -> ImagePreprocessing:
    assert preprocessing.image is not None, "a model without image encoder decodes no picture"
    return preprocessing.image


def _crop_side(height: int, width: int, image: ImagePreprocessing) -> int:
    """The side to cut out, so that resizing it to S equals 'resize the short side, then crop'.

    Settings that cut more than they resized to (S above `resize_px`) get the whole short side.
    """
    short = min(height, width)
    return min(short, max(1, round(short * image.image_size_px / image.resize_px)))


def _resized(picture: Tensor, image: ImagePreprocessing) -> Tensor:
    side = image.image_size_px
    if picture.shape[1:] == (side, side):
        return picture
    resized = interpolate(
        picture[None].contiguous(memory_format=torch.channels_last),
        size=(side, side),
        mode=image.interpolation,
        antialias=True,
        align_corners=False,
    )
    return resized[0]
