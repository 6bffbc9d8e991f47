"""Images as a Python program gives them: paths, bytes, Pillow images, arrays of pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsa.data.decoding.posted_images import BadImage, image_file

# A file's path, its bytes, an image that Pillow has opened or made, or an array of pixels: uint8 of
# (H, W), (H, W, 3) or (H, W, 4), which is grey, RGB or RGBA.
ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
)

_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)


def is_one_image(given: Any) -> bool:
    """Whether this is one image where a list of them is expected.

    An array (H, W) or (H, W, 3) is one; (N, H, W, 3) is a list of N.
    """
    if isinstance(given, np.ndarray):
        return given.dtype != object and given.ndim in (2, 3)
    return isinstance(given, _SINGLE)


def content_of(image: Any) -> bytes | Image.Image:
    """What packing takes of an image. Raises `BadImage` where it is none or cannot be read."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return image_file(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    raise BadImage(f"expected a path, bytes, a Pillow image or an array, found {shown(image)}")


def _of_array(pixels: NDArray[Any]) -> Image.Image:
    shape = pixels.shape
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits:
        raise BadImage(
            f"an array of {pixels.dtype} with the shape {shape}; expected uint8 of (H, W), "
            "(H, W, 3) or (H, W, 4): grey, RGB or RGBA"
        )
    if 0 in shape:
        raise BadImage(f"picture of {shape[1]}x{shape[0]} has no pixels", "empty")
    return Image.fromarray(np.ascontiguousarray(pixels))


def shown(value: object) -> str:
    """A value in a message: the start of how Python writes it, on one line."""
    return " ".join(repr(value)[:60].split())[:40]
