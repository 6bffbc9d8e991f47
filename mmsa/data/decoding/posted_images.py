"""Bytes of any image that people post -> its pixels and what its header says.

The content decides the type, not the file name: JPEG, PNG, GIF and WebP (first frame of an
animation) and BMP, in all their modes. Transparent parts become white, 16 bits become 8, CMYK and
palettes become RGB. The EXIF orientation is returned, and `pixels.upright` applies it. Colour
profiles are ignored.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from mmsa.data.decoding.pixels import Pixels

# Other formats are refused: for EPS, Pillow would run an external program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")

# In pixels. Decoding and encoding this many takes about 0.4 GB of memory. Posted images have at
# most 16 million (X reduces to 4096 x 4096), a phone's camera makes 12 to 50 million.
MAX_PIXELS = 64_000_000
# On opening, Pillow refuses more than twice its own limit, whatever is allowed here.
LARGEST_MAX_PIXELS = 2 * 89_478_485

_ORIENTATION = 0x0112  # EXIF tag: 1 to 8, as in pixels.upright
_TRUNCATED = ("truncated", "premature", "unexpected end", "not enough image data")

Content = bytes | memoryview


class BadImage(ValueError):
    """Bytes that are not an image, or an image that cannot be used; the message is the reason.

    `kind` is one of "empty", "truncated", "too large", "unreadable".
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (str(self), self.kind)  # packing's workers pickle it


@dataclass(frozen=True)
class Header:
    """What the header of an image says: `width` and `height` in pixels, before orientation, and
    `orientation` from 1 to 8, as in EXIF."""

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
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, of odd EXIF and large images
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
        # Any exception means that these bytes are bad: for damaged files Pillow raises OSError, but
        # also SyntaxError, struct.error, IndexError, KeyError and more.
        raise _bad(error) from None
    return pixels, header


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
    """Decode a JPEG with the faster decoder; None if it reports a problem: then Pillow decides."""
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
    """Convert to RGB, transparent parts over white."""
    image = opened
    if image.mode.startswith("I"):  # 16 bits of grey; `convert` would cut off at 255
        grey = np.asarray(image)
        image = Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8))
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
