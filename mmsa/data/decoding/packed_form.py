"""The packed form of one text and one picture.

Packing brings every raw pair into this form once; prediction on raw input uses the very same
functions, so that a model sees at use what it saw in evaluation. torch is imported when the first
picture is reduced, not before: `shards` imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from mmsa.data.decoding.posted_images import (
    LARGEST_MAX_PIXELS,
    MAX_PIXELS,
    BadImage,
    Pixels,
    decode_image,
    upright,
)
from mmsa.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadImage", "BadText", "image_as_packed", "pack_image", "text_as_packed"]

MODES = ("short_side", "original", "square")
_LARGEST_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION

# What --normalize may name, applied in this order. The replacements are those that models made for
# tweets were trained with (Barbieri et al., TweetEval, 2020).
NORMALIZATIONS = ("urls", "mentions", "whitespace")
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_MENTION = re.compile(r"(?<![\w@])@\w+")


class BadText(ValueError):
    """A text that cannot be used; the text of the error is the reason."""


def text_as_packed(text: str, normalize: Sequence[str] = ()) -> str:
    """`text` without surrounding blanks and line ends. Raises `BadText` where nothing is left.

    `normalize` names what else is done: "urls" become `http`, "mentions" `@user`, and each run of
    "whitespace" one blank. The order in which they are named does not matter.
    """
    assert set(normalize) <= set(NORMALIZATIONS), normalize
    if "urls" in normalize:
        text = _URL.sub("http", text)
    if "mentions" in normalize:
        text = _MENTION.sub("@user", text)
    if "whitespace" in normalize:
        text = " ".join(text.split())
    stripped = text.strip()
    if not stripped:
        raise BadText("empty text")
    return stripped


@dataclass(frozen=True)
class PackedImage:
    """A picture as it goes into a shard: its JPEG bytes, and the pixels (H, W, 3) that they show.

    `width` and `height` in pixels. `untouched` means that `jpeg` are the bytes that were given.
    `source_format` is the true type of what was given: JPEG, PNG, GIF, WEBP or BMP.
    """

    jpeg: bytes
    width: int
    height: int
    source_format: str
    untouched: bool
    pixels: Pixels

    def picture(self) -> Image:
        """The pixels as a Pillow image."""
        from PIL import Image as pillow

        return pillow.fromarray(self.pixels)


def image_as_packed(
    content: bytes,
    *,
    short_side_px: int | None,
    quality: int,
    mode: str = "short_side",
    max_pixels: int = MAX_PIXELS,
) -> tuple[bytes, int, int]:
    """(JPEG bytes, width, height) of a picture in packed form; see `pack_image`."""
    packed = pack_image(
        content, short_side_px=short_side_px, quality=quality, mode=mode, max_pixels=max_pixels
    )
    return packed.jpeg, packed.width, packed.height


def pack_image(
    content: bytes,
    *,
    short_side_px: int | None,
    quality: int,
    mode: str = "short_side",
    max_pixels: int = MAX_PIXELS,
) -> PackedImage:
    """Bring a picture into packed form: a baseline RGB JPEG, upright, with nothing but pixels.

    `mode` "short_side" reduces to a short side of `short_side_px` pixels, and leaves smaller ones
    as large as they are. "square" takes the largest centred square and brings it to
    `short_side_px`, enlarging too. "original" (`short_side_px` None) keeps the bytes of a JPEG
    that any reader shows as it is meant; what is no such JPEG (another type, CMYK, turned by EXIF)
    is encoded again in full size.

    Raises `BadImage` for bytes that do not decode to the last row, for more than `max_pixels`
    pixels and for a result too large for a JPEG; `UserError` for settings that make no sense.

    In the first two modes a JPEG that already has that form is encoded again all the same: what is
    in the shards depends on the input alone.
    """
    _check(short_side_px, quality, mode, max_pixels)
    pixels, header = decode_image(content, max_pixels=max_pixels, short_side_px=short_side_px)
    if mode == "original" and header.plain:
        height, width = pixels.shape[:2]
        return PackedImage(content, width, height, header.format, True, pixels)
    if mode == "square":
        assert short_side_px is not None
        pixels = _resized(_centre_square(pixels), short_side_px, short_side_px)
    elif mode == "short_side":
        assert short_side_px is not None
        pixels = _reduced(pixels, header.height, header.width, short_side_px)
    pixels = upright(pixels, header.orientation)
    height, width = pixels.shape[:2]
    if max(height, width) > _LARGEST_JPEG_SIDE:
        raise BadImage(f"picture of {width}x{height} pixels does not fit a JPEG", "too large")
    # 4:2:0 as cameras and the raw tweets have it.
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return PackedImage(jpeg, width, height, header.format, False, pixels)


def _check(short_side_px: int | None, quality: int, mode: str, max_pixels: int) -> None:
    if mode not in MODES:
        raise UserError(f"there is no image mode '{mode}'; known: {', '.join(MODES)}")
    if mode == "original":
        if short_side_px is not None:
            raise UserError(f"the image mode 'original' takes no size, found {short_side_px}")
    elif short_side_px is None or short_side_px < 1:
        raise UserError(f"the image short side is {short_side_px} pixels; it must be at least 1")
    if not 1 <= quality <= 100:
        raise UserError(f"the JPEG quality is {quality}; it must be from 1 to 100")
    if not 1 <= max_pixels <= LARGEST_MAX_PIXELS:
        raise UserError(
            f"the pixel limit is {max_pixels}; it must be from 1 to {LARGEST_MAX_PIXELS}"
        )


def _reduced(pixels: Pixels, full_height: int, full_width: int, short_side_px: int) -> Pixels:
    """Reduce to a short side; `full_*` are the sizes before a JPEG was decoded smaller."""
    short = min(full_height, full_width)
    if short <= short_side_px:
        return pixels
    height = max(1, round(full_height * short_side_px / short))
    width = max(1, round(full_width * short_side_px / short))
    return _resized(pixels, height, width)


def _centre_square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize (H, W, 3) by an antialiased bicubic filter.

    torch's filter is Pillow's in integer arithmetic, about three times as fast where the processor
    has AVX2, and gives the same bytes with and without it (measured on the real pictures).
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch
    from torch.nn.functional import interpolate

    rows = pixels if pixels.flags.writeable else pixels.copy()
    # (1, 3, H, W) in channels-last memory: the fast path
    planes = torch.from_numpy(rows)[None].permute(0, 3, 1, 2)
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
