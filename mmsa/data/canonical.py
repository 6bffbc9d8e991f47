"""The packed form of one text and one picture.

Packing brings every raw pair into this form once; prediction on raw input uses the very same
functions, so that a model sees at use what it saw in evaluation. No torch in here: `shards` imports
this file.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from mmsa.errors import UserError

# The true type decides, not the file's name. Others are refused: Pillow hands EPS to a program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")


class BadPicture(ValueError):
    """Bytes that are no picture, or one that cannot be used; the text is the reason."""


class BadText(ValueError):
    """A text that cannot be used; the text of the error is the reason."""


def canonical_text(text: str) -> str:
    """`text` without surrounding blanks and line ends. Raises `BadText` where nothing is left."""
    stripped = text.strip()
    if not stripped:
        raise BadText("empty text")
    return stripped


def canonical_image(content: bytes, *, short_side_px: int, quality: int) -> tuple[bytes, int, int]:
    """Re-encode a picture as a baseline RGB JPEG whose short side is at most `short_side_px`.

    Smaller pictures keep their size; none is enlarged. Returns (JPEG bytes, width, height) in
    pixels. Raises `BadPicture` for bytes that do not decode completely.

    A JPEG that is already of that form (RGB, short side at most `short_side_px`, as this function
    wrote it) is encoded again all the same: what is in the shards depends on the input alone.
    """
    if short_side_px < 1:
        raise UserError(f"the image short side is {short_side_px} pixels; it must be at least 1")
    if not content:
        raise BadPicture("empty image file")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            opened.load()  # decodes to the last row: a truncated file raises here
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except Image.DecompressionBombError as error:
        raise BadPicture(f"picture too large: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadPicture(f"unreadable image: {type(error).__name__}") from None
    width, height = picture.size
    short = min(width, height)
    if short > short_side_px:
        width = max(1, round(width * short_side_px / short))
        height = max(1, round(height * short_side_px / short))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, "JPEG", quality=quality)
    except OSError:  # a side of more than 65,535 pixels
        raise BadPicture(f"picture of {width}x{height} pixels does not fit a JPEG") from None
    return buffer.getvalue(), width, height
