"""The packed form of one text and one image.

Packing converts each raw pair to this form once. Prediction on raw input uses the same functions,
so that a model in use sees what it saw in evaluation. Nothing here imports torch before the first
image is resized, because the command line of `shards` imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import simplejpeg

from mmsa.data.decoding.limits import LARGEST_MAX_PIXELS, MAX_CHARACTERS, MAX_PIXELS
from mmsa.data.decoding.pixels import Pixels, centre_square, resized, upright
from mmsa.data.decoding.posted_images import (
    BadImage,
    decode_image,
    decode_opened,
    file_of,
)
from mmsa.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadImage", "BadText", "image_as_packed", "pack_image", "text_as_packed"]

MODES = ("short_side", "original", "square")
_LARGEST_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION

# Values of --normalize, applied in this order. The replacements are those that models for tweets
# were trained with (Barbieri et al., TweetEval, 2020).
NORMALIZATIONS = ("urls", "mentions", "whitespace")
URL_PATTERN = r"(?:https?://|www\.)\S+"
MENTION_PATTERN = r"(?<![\w@])@\w+"
_URL = re.compile(URL_PATTERN, re.IGNORECASE)
_MENTION = re.compile(MENTION_PATTERN)


class BadText(ValueError):
    """A text that cannot be used; the message is the reason.

    `kind` is one of "empty", "undecoded", "too long".
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadText], tuple[str, str]]:
        return BadText, (str(self), self.kind)  # packing's workers pickle it


def text_as_packed(
    text: str, normalize: Sequence[str] = (), *, max_characters: int = MAX_CHARACTERS
) -> str:
    """`text` without leading and trailing whitespace.

    Raises `BadText` if nothing is left, if it has more than `max_characters`, and for half a
    surrogate pair, which is what is left of bytes that were not in their encoding.

    `normalize` selects more: "urls" replaces each URL by `http`, "mentions" each mention by
    `@user`, "whitespace" each run of whitespace by one blank. Their order does not matter.
    """
    unknown = sorted(set(normalize) - set(NORMALIZATIONS))
    if unknown:  # in the files of an export, perhaps of a later version
        raise UserError(
            f"there is no normalization '{unknown[0]}' of texts; known: {', '.join(NORMALIZATIONS)}"
        )
    # First: the patterns below take their time on a text of 100 MB.
    if len(text) > max_characters:
        raise BadText(
            f"text of {len(text):,} characters is over the limit of {max_characters:,}", "too long"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadText(f"half a surrogate pair at character {error.start}", "undecoded") from None
    if "urls" in normalize:
        text = _URL.sub("http", text)
    if "mentions" in normalize:
        text = _MENTION.sub("@user", text)
    if "whitespace" in normalize:
        text = " ".join(text.split())
    stripped = text.strip()
    if not stripped:
        raise BadText("empty text", "empty")
    return stripped


@dataclass(frozen=True)
class PackedImage:
    """An image as stored in a shard: its JPEG bytes, and the pixels (H, W, 3) that were encoded.

    `width` and `height` are in pixels. `untouched` means that `jpeg` is the input itself.
    `source_format` is the true type of the input, one of `posted_images.FORMATS`.
    """

    jpeg: bytes
    width: int
    height: int
    source_format: str
    untouched: bool
    pixels: Pixels

    def to_pillow(self) -> Image:
        """The pixels as a Pillow image."""
        from PIL import Image as pillow

        return pillow.fromarray(self.pixels)


def image_as_packed(
    content: bytes | Image,
    *,
    short_side_px: int | None,
    quality: int,
    mode: str = "short_side",
    max_pixels: int = MAX_PIXELS,
) -> tuple[bytes, int, int]:
    """(JPEG bytes, width, height) of an image in packed form; see `pack_image`."""
    packed = pack_image(
        content, short_side_px=short_side_px, quality=quality, mode=mode, max_pixels=max_pixels
    )
    return packed.jpeg, packed.width, packed.height


def pack_image(
    content: bytes | Image,
    *,
    short_side_px: int | None,
    quality: int,
    mode: str = "short_side",
    max_pixels: int = MAX_PIXELS,
) -> PackedImage:
    """Convert an image to packed form: an upright baseline RGB JPEG without metadata.

    `content` is a file's bytes, or an image that Pillow has opened or made. One that Pillow has not
    decoded yet gives the same result as its file. One that it has is taken at its full size: a JPEG
    of four times the short side and more then differs from its file in the last digits.

    `mode` "short_side" reduces the image to a short side of `short_side_px` pixels; smaller images
    keep their size. "square" cuts out the largest centred square and resizes it, up or down, to
    `short_side_px`. "original" (`short_side_px` None) keeps the bytes of a JPEG that any reader
    shows as intended; anything else (another type, CMYK, turned by EXIF) is encoded at full size.

    Raises `BadImage` for bytes that do not decode to the last row, for more than `max_pixels`
    pixels and for a result too large for a JPEG; `UserError` for settings that make no sense.

    The first two modes encode again even a JPEG that already has this form, so that the bytes in
    the shards depend on the input alone.
    """
    _check(short_side_px, quality, mode, max_pixels)
    file = content if isinstance(content, bytes) else file_of(content)
    if file is None:
        assert not isinstance(content, bytes)
        pixels, header = decode_opened(content, max_pixels=max_pixels)
    else:
        pixels, header = decode_image(file, max_pixels=max_pixels, short_side_px=short_side_px)
    if mode == "original" and header.plain and file is not None:
        height, width = pixels.shape[:2]
        return PackedImage(file, width, height, header.format, True, pixels)
    if mode == "square":
        assert short_side_px is not None
        pixels = resized(centre_square(pixels), short_side_px, short_side_px)
    elif mode == "short_side":
        assert short_side_px is not None
        pixels = _reduced(pixels, header.height, header.width, short_side_px)
    pixels = upright(pixels, header.orientation)
    height, width = pixels.shape[:2]
    if max(height, width) > _LARGEST_JPEG_SIDE:
        raise BadImage(f"picture of {width}x{height} pixels does not fit a JPEG", "too large")
    # 4:2:0, like cameras and the raw tweets.
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
    """Reduce to a short side; `full_*` is the image's size before a JPEG was decoded smaller."""
    short = min(full_height, full_width)
    if short <= short_side_px:
        return pixels
    height = max(1, round(full_height * short_side_px / short))
    width = max(1, round(full_width * short_side_px / short))
    return resized(pixels, height, width)
