"""Any image that people post -> its pixels and what its header says: a file, its bytes, or an image
that Pillow has opened.

The content decides the type, not the file name: JPEG, PNG, GIF, WebP and AVIF (first frame of an
animation), BMP and TIFF (first page), in all their modes. Transparent parts become white, 16 bits
become 8, CMYK and palettes become RGB. The EXIF orientation is returned, and `pixels.upright`
applies it. Colour profiles are ignored.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from mmsa.data.decoding.cut_jpegs import has_all_parts, is_cut
from mmsa.data.decoding.file_kinds import ACCEPTED, ACCEPTED_NAMES, accepted_format, described
from mmsa.data.decoding.limits import MAX_PIXELS
from mmsa.data.decoding.pixels import Pixels
from mmsa.data.decoding.png_texts import SIGNATURE, without_texts
from mmsa.errors import first_line
from mmsa.foundation.regular_file import NotRegular, read_regular

FORMATS = tuple(ACCEPTED)

_ORIENTATION = 0x0112  # EXIF tag: 1 to 8, as in pixels.upright
_TRUNCATED = ("truncated", "premature", "unexpected end", "not enough image data")

Content = bytes | memoryview


class BadImage(ValueError):
    """Bytes that are not an image, or an image that cannot be used; the message is the reason.

    `kind` is one of "empty", "truncated", "too large", "unreadable", "missing".
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (str(self), self.kind)  # packing's workers pickle it


@dataclass(frozen=True)
class Header:
    """What the header of an image says: `width` and `height` in pixels, before orientation, and
    `orientation` from 1 to 8, as in EXIF. `format` is one of `FORMATS`: an MPO is a JPEG."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int

    @property
    def plain(self) -> bool:
        """Whether it is a JPEG that any reader shows as intended: RGB or grey, upright."""
        return self.format == "JPEG" and self.mode in ("RGB", "L") and self.orientation == 1


def decode_image(
    content: Content, *, max_pixels: int = MAX_PIXELS, short_side_px: int | None = None
) -> tuple[Pixels, Header]:
    """The pixels (H, W, 3) of an image, not yet turned upright, and its header.

    With `short_side_px`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as the short
    side stays at least twice that. This is much faster, and after reducing it to `short_side_px`
    there is no visible loss (49 dB on average against a full decode).

    Raises `BadImage` for bytes that do not decode to the last row and for more than `max_pixels`.
    """
    if not content:
        raise BadImage("empty image file", "empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of odd EXIF and large images
            try:
                return _decoded(content, max_pixels, short_side_px)
            except ValueError as error:
                # Named in the message: Pillow's limits of a PNG's texts, which nobody here reads.
                if "MAX_TEXT" not in str(error) or bytes(content[:8]) != SIGNATURE:
                    raise
                return _decoded(without_texts(bytes(content)), max_pixels, short_side_px)
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(str(error), "too large") from None
    except Exception as error:
        # Any exception means that these bytes are bad: for damaged files Pillow raises OSError, but
        # also SyntaxError, struct.error, IndexError, KeyError and more.
        kind = accepted_format(content)
        # A WebP's length is in its bytes 4 to 8, as of every RIFF file.
        webp_bytes = 8 + int.from_bytes(content[4:8], "little")
        if (kind == "JPEG" and not has_all_parts(content)) or (
            kind == "WEBP" and len(content) < webp_bytes
        ):
            raise BadImage("truncated image", "truncated") from None
        if isinstance(error, UnidentifiedImageError):
            raise BadImage(_unidentified(content)) from None
        raise _bad(error) from None


def _decoded(content: Content, max_pixels: int, short_side_px: int | None) -> tuple[Pixels, Header]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        header = _header(opened)
        _refuse_large(header, max_pixels)
        # A JPEG with more images behind the first is always decoded in full size.
        side = None if opened.format == "MPO" else short_side_px
        pixels = _decode_clean_jpeg(content, header, side)
        if pixels is None:
            _refuse_without_range(header)
            opened.load()
            pixels = np.asarray(_on_white(opened))
        return pixels, header


def image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file, whatever they are. Raises `BadImage` where it cannot be read."""
    shown = ascii(os.fspath(path))
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise BadImage(f"the file {shown} does not exist", "missing") from None
    except NotRegular as error:
        raise BadImage(f"{shown} cannot be read: {error.strerror}") from None
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise BadImage(f"the file {shown} cannot be read ({said})") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise BadImage(f"{shown} is not a file name", "missing") from None


def file_of(image: Image.Image) -> bytes | None:
    """The bytes that Pillow opened as `image`, if it has not decoded them yet; else None.

    Until then nobody can have changed the pixels, so the image is what its file holds. Its own
    position in the file is kept, for a later decode.
    """
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return None
    file: Any = image.fp
    if file is None or image.format not in (*FORMATS, "MPO"):
        return None
    try:
        if image.tell() != 0:  # another frame of an animation than the first
            return None
        position = file.tell()
        try:
            file.seek(0)
            content: bytes = file.read()
        finally:
            file.seek(position)
    except Exception:  # a closed file, or one that cannot seek: decoding it will say so
        return None
    return content


def decode_opened(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, Header]:
    """As `decode_image`, for an image that Pillow has opened or made; it is not changed.

    Raises `BadImage` for one without pixels, with more than `max_pixels`, of a mode that has no
    way to RGB, and where decoding its file fails.
    """
    if 0 in image.size:
        raise BadImage(f"picture of {image.width}x{image.height} has no pixels", "empty")
    header = _header(image)
    _refuse_large(header, max_pixels)
    _refuse_without_range(header)
    try:
        with warnings.catch_warnings(action="ignore"):
            image.load()
            # A copy: some conversions of Pillow share memory with the user's image.
            return np.array(_on_white(image)), header
    except MemoryError:
        raise
    except Exception as error:
        bad = _bad(error)
        if bad.kind == "truncated":
            raise bad from None
        raise BadImage(
            f"an image of mode {image.mode} that cannot be converted ({first_line(error)})"
        ) from None


def _header(opened: Image.Image) -> Header:
    """What Pillow has read. An MPO is a JPEG with more images behind the first."""
    return Header(
        format="JPEG" if opened.format == "MPO" else str(opened.format),
        mode=opened.mode,
        width=opened.width,
        height=opened.height,
        # Pillow turns a TIFF itself when it decodes it, and only that; its size is already turned.
        orientation=1 if opened.format == "TIFF" else _orientation(opened),
    )


def size_as_shown(opened: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as it is decoded: turned as its EXIF says."""
    header = _header(opened)
    turned = header.orientation >= 5
    return (header.height, header.width) if turned else (header.width, header.height)


def _refuse_without_range(header: Header) -> None:
    if header.mode == "F":
        raise BadImage("its mode F has no fixed range of values; convert it to RGB first")


def _refuse_large(header: Header, max_pixels: int) -> None:
    count = header.width * header.height
    if count > max_pixels:
        raise BadImage(
            f"picture of {header.width}x{header.height} = {count:,} pixels is over the limit of "
            f"{max_pixels:,}",
            "too large",
        )


def _orientation(opened: Image.Image) -> int:
    try:
        value = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # with damaged EXIF, the image is used without turning it
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_clean_jpeg(
    content: Content, header: Header, short_side_px: int | None
) -> Pixels | None:
    """Decode a JPEG with the faster decoder; None if it reports a problem: then Pillow decides.

    Pillow does not report missing rows. So one in CMYK is decoded too, and not used. Raises
    `BadImage` where rows are missing.
    """
    if header.format != "JPEG" or header.mode not in ("RGB", "L", "CMYK"):
        return None
    colorspace = "CMYK" if header.mode == "CMYK" else "RGB"
    height, width = 0, 0
    if short_side_px is not None:
        for divisor in (8, 4, 2):
            if min(header.width, header.height) >= 2 * divisor * short_side_px:
                height, width = -(-header.height // divisor), -(-header.width // divisor)
                break
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(
            content, colorspace=colorspace, min_height=height, min_width=width, strict=True
        )
    except ValueError as error:
        if is_cut(content, str(error)):
            raise BadImage("truncated image", "truncated") from None
        return None
    return None if colorspace == "CMYK" else decoded


def _on_white(opened: Image.Image) -> Image.Image:
    """Convert to RGB, transparent parts over white."""
    image = opened
    if image.mode.startswith("I"):  # 16 bits of grey; `convert` would cut off at 255
        grey = np.asarray(image)
        levels = (np.clip(grey, 0, 65535) >> 8).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            levels[grey == transparent] = 255
        image = Image.fromarray(levels)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _bad(error: Exception) -> BadImage:
    said = str(error)
    if any(word in said.lower() for word in _TRUNCATED):
        return BadImage("truncated image", "truncated")
    return BadImage(f"unreadable image: {type(error).__name__}")


def _unidentified(content: Content) -> str:
    """Why Pillow opens none of the formats in `content`."""
    if accepted_format(content) is not None:
        return f"unreadable image: {described(content)} that is cut or damaged at its beginning"
    return f"its content is {described(content)}; accepted are {ACCEPTED_NAMES}"
