"""Pictures between JPEG bytes and the uint8 square that an encoder takes.

Legend: H, W height and width of a packed picture; S the encoder's input side, all in pixels.
Normalisation is not done here but on the device, inside the image encoder.
"""

from __future__ import annotations

import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmsa.data.pictures import decode_picture, upright
from mmsa.data.plan import stream_key, uniforms
from mmsa.data.preprocessing import ImagePreprocessing, Preprocessing

_JPEG_START = b"\xff\xd8\xff"
_HEADERS = 1 << 16  # bytes at the start in which these marks would stand
_NOT_PLAIN = (b"Exif\0", b"Adobe\0")  # an orientation perhaps; CMYK perhaps
_MOST_PIXELS = 1 << 26  # 8192 x 8192; a damaged header may ask for 12 GiB


def decode(content: bytes) -> Tensor:
    """Bytes of a picture to uint8 (3, H, W), RGB. Raises `ValueError` where they do not decode.

    Packed pictures are plain JPEGs and take the short way; tars packed by others may hold any type,
    an orientation or CMYK, and are decoded as packing decodes raw pictures.
    """
    if content[:3] == _JPEG_START and not any(mark in content[:_HEADERS] for mark in _NOT_PLAIN):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            if height * width > _MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {_MOST_PIXELS}")
            rows = simplejpeg.decode_jpeg(content, colorspace="RGB")  # (H, W, 3)
        except ValueError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        return torch.from_numpy(rows).permute(2, 0, 1)
    pixels, header = decode_picture(content)
    rows = upright(pixels, header.orientation)
    return torch.from_numpy(rows.transpose(2, 0, 1).copy())


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
        picture[None],
        size=(side, side),
        mode=image.interpolation,
        antialias=True,
        align_corners=False,
    )
    return resized[0]
