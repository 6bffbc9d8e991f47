"""From a raw image to what a model sees of it in evaluation: packed, then decoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmsa.data.decoding import image_views
from mmsa.data.decoding.limits import MAX_PIXELS
from mmsa.data.decoding.packed_form import image_as_packed
from mmsa.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


def raw_view(
    content: bytes | Image, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """The view (3, S, S) uint8 of a file's bytes, or of an image that Pillow has opened or made.

    It goes through the packing's own functions (short side, JPEG quality). Raises `BadImage` where
    packing would reject the image, which it does above `max_pixels`.
    """
    packed, _, _ = image_as_packed(
        content,
        mode=preprocessing.packed_mode,
        short_side_px=preprocessing.packed_short_side_px,
        quality=preprocessing.packed_quality,
        max_pixels=max_pixels,
    )
    return image_views.evaluation_view(image_views.decode(packed), preprocessing)
