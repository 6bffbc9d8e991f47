"""Bytes of any picture that people post -> its pixels as they are meant to be seen.

The true type decides, not the file's name: JPEG, PNG, GIF and WebP (the first frame of an animated
one) and BMP, in every mode these have. Transparent parts lie on white, 16 bits become 8, CMYK and
palettes become RGB, and an EXIF orientation is applied. Colour profiles are passed over.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

# Others are refused: Pillow hands EPS to a program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")

# Pixels. Decoded to RGB and back this is about 0.4 GB of memory; posted pictures have 16 million at
# most (X and its successors reduce to 4096 x 4096), a phone's camera 12 to 50.
MAX_PIXELS = 64_000_000
# Pillow refuses twice its own limit on opening, whatever is asked for here.
LARGEST_MAX_PIXELS = 2 * 89_478_485

_ORIENTATION = 0x0112  # EXIF tag: 1 upright, 2 to 8 as in _upright
_TRUNCATED = ("truncated", "premature", "unexpected end", "not enough image data")

Content = bytes | memoryview
Pixels = NDArray[np.uint8]  # (H, W, 3), RGB


class BadImage(ValueError):
    """Bytes that are no picture, or one that cannot be used; the text is the reason.

    `kind` is one of "empty", "truncated", "too large", "unreadable".
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (str(self), self.kind)  # workers hand it to their parent by pickle


@dataclass(frozen=True)
class Header:
    """What a picture's first bytes say. `width` and `height` in pixels, before orientation.

    `orientation` is 1 to 8, as in EXIF. `plain` means that any JPEG reader shows it as meant: a
    JPEG in RGB or grey, upright.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int

    @property
    def plain(self) -> bool:
        """A JPEG that any reader shows as it is meant."""
        return self.format == "JPEG" and self.mode in ("RGB", "L") and self.orientation == 1


def decode_image(
    content: Content, *, max_pixels: int = MAX_PIXELS, short_side_px: int | None = None
) -> tuple[Pixels, Header]:
    """The pixels (H, W, 3) of a picture, not yet turned upright (`upright` does), and its header.

    With `short_side_px` a JPEG may come smaller than it is, by 2, 4 or 8, with a short side of at
    least twice that: enough to be reduced to it without a visible loss (measured against a full
    decode: 49 dB on average), and much faster.

    Raises `BadImage` for bytes that do not decode to the last row and for more than `max_pixels`.
    """
    if not content:
        raise BadImage("empty image file", "empty")
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, of odd EXIF and large pictures
            Image.open(io.BytesIO(content), formats=FORMATS) as opened,
        ):
            header = Header(
                format=str(opened.format),
                mode=opened.mode,
                width=opened.width,
                height=opened.height,
                orientation=_orientation(opened),
            )
            _refuse_large(header, max_pixels)
            pixels = _decode_clean_jpeg(content, header, short_side_px)
            if pixels is None:
                opened.load()
                pixels = np.asarray(_on_white(opened))
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(str(error), "too large") from None
    except Exception as error:
        # Whatever a decoder stumbles over is a fact about these bytes: besides OSError, damaged
        # files make Pillow raise SyntaxError, struct.error, IndexError, KeyError and more.
        raise _bad(error) from None
    return pixels, header


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1 to 8; others change nothing) to pixels (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


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
    except Exception:  # EXIF is a side matter: a damaged one leaves the picture as it lies
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_clean_jpeg(
    content: Content, header: Header, short_side_px: int | None
) -> Pixels | None:
    """A JPEG by the faster decoder, or None where it finds anything odd: Pillow decides then."""
    if header.format != "JPEG" or header.mode not in ("RGB", "L"):
        return None
    height, width = 0, 0
    if short_side_px is not None:
        for divisor in (8, 4, 2):
            if min(header.width, header.height) >= 2 * divisor * short_side_px:
                height, width = -(-header.height // divisor), -(-header.width // divisor)
                break
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(
            content, colorspace="RGB", min_height=height, min_width=width, strict=True
        )
    except ValueError:
        return None
    return decoded


def _on_white(opened: Image.Image) -> Image.Image:
    """RGB, with what lies behind transparent parts in white."""
    picture = opened
    if picture.mode.startswith("I"):  # 16 bits of grey; `convert` would cut off at 255
        grey = np.asarray(picture)
        picture = Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _bad(error: Exception) -> BadImage:
    said = str(error)
    if any(word in said.lower() for word in _TRUNCATED):
        return BadImage("truncated image", "truncated")
    return BadImage(f"unreadable image: {type(error).__name__}")
