"""The image processor of a Hugging Face model as the numbers of `ImagePreprocessing`.

A processor is code of its own, and its attributes do not say all that it does (a `crop_pct`, the
order of channels). So the numbers are measured: test images go through it, and then through our own
evaluation view, which must agree. A processor that our numbers cannot express is refused.

Shapes: S side of the encoder's input in pixels. A level is 1 of 255 steps of brightness.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmsa.data.decoding.image_views import evaluation_view
from mmsa.errors import UserError, first_line
from mmsa.hub import IMAGE_PARTS, from_hub
from mmsa.preprocessing import ImagePreprocessing, Preprocessing

# How far our view may be from the processor's: some levels, and a shift by a part of one pixel of
# the input. Both filter alike, but crop and resize in another order, and round sizes to pixels.
MEAN_LEVELS, MEAN_SHIFT_PX = 1.0, 0.6
MOST_LEVELS, MOST_SHIFT_PX = 8.0, 1.0

# (height, width) of the test images. Two sizes of the short side: a processor that does not resize
# shows another part of each.
_SQUARE, _LANDSCAPE, _PORTRAIT = (307, 307), (389, 523), (523, 389)
_RISE = 220.0  # of the test images, in levels, from edge to edge
_SNAP_PX = 1.0  # a measured `resize_px` this close to the stated one means the stated one
_SOLIDS = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))

# `resample` as processors write it, by Pillow's numbers; the nearest of ours for the others.
_NEAREST, _LANCZOS, _BICUBIC = 0, 1, 3

Interpolation = Literal["bilinear", "bicubic", "nearest"]


class _Differs(Exception):
    """What a processor does that our numbers do not."""


def read_processor(name: str) -> ImagePreprocessing:
    """The numbers that do what the image processor of `name` does.

    Raises `UserError` where it cannot be loaded, or does what cannot be reproduced.
    """
    from transformers import AutoImageProcessor

    processor = from_hub(AutoImageProcessor.from_pretrained, name, IMAGE_PARTS)
    if hasattr(processor, "max_num_patches"):
        return _square_of_patches(processor)
    return imitate(processor, name)


def _square_of_patches(processor: Any) -> ImagePreprocessing:
    """The largest square of patches of a processor that keeps the shape of images (SigLIP 2
    NaFlex). Our images are squares: squeezed to them or cut from the centre."""
    side = int(processor.max_num_patches**0.5) * int(processor.patch_size)
    stated = _stated(processor, side)
    return stated.model_copy(update={"resize_px": side, "squeezes": True})


def imitate(processor: Any, name: str) -> ImagePreprocessing:
    """The numbers that do what `processor` does, tried on test images.

    Raises `UserError` that names `name`, the processor's class and the first difference.
    """
    try:
        return _imitated(processor)
    except _Differs as difference:
        raise UserError(
            f"the image processor of {name} ({type(processor).__name__}) cannot be reproduced: "
            f"{difference}. Expected one RGB image of a fixed square size, cut from the centre or "
            "squeezed; choose another image encoder"
        ) from None


def _imitated(processor: Any) -> ImagePreprocessing:
    shown = _shown(processor, _test_image(*_SQUARE))
    found = _measured(processor, shown, _stated(processor, shown.shape[-1]))
    for size in (_SQUARE, _LANDSCAPE, _PORTRAIT):
        difference = _difference(_shown(processor, _test_image(*size)), size, found)
        if difference is not None:
            raise _Differs(f"of a test image of {size[1]} x {size[0]} px {difference}")
    return found


def _stated(processor: Any, side: int) -> ImagePreprocessing:
    """What the attributes of `processor`, whose images have `side` pixels, say in plain cases."""
    values = processor.to_dict()
    size = _side(values.get("size")) or side
    interpolation: Interpolation = "bilinear"
    if values.get("resample") in (_LANCZOS, _BICUBIC):
        interpolation = "bicubic"
    elif values.get("resample") == _NEAREST:
        interpolation = "nearest"
    mean, std = _three(values.get("image_mean")), _three(values.get("image_std"))
    normalised = values.get("do_normalize", True) and mean is not None and std is not None
    return ImagePreprocessing(
        image_size_px=side,
        resize_px=max(size, side),
        mean=mean if normalised and mean is not None else (0.0, 0.0, 0.0),
        std=std if normalised and std is not None else (1.0, 1.0, 1.0),
        interpolation=interpolation,
    )


def _measured(processor: Any, shown: Tensor, stated: ImagePreprocessing) -> ImagePreprocessing:
    """`stated` with what was measured in its place where the two differ.

    `shown` is what the processor makes of the square test image.
    """
    blue_first, mean, std = _colours(processor)
    measured = stated.model_copy(
        update={
            "channels": "BGR" if blue_first else "RGB",
            "mean": _snapped(mean, stated.mean),
            "std": _snapped(std, stated.std),
            "squeezes": _squeezes(processor),
        }
    )
    resize_px = measured.image_size_px / _part_shown(_levels(shown, measured))
    if abs(resize_px - stated.resize_px) > _SNAP_PX:
        resize_px = max(measured.image_size_px, round(resize_px))
        measured = measured.model_copy(update={"resize_px": resize_px})
    return measured


def _part_shown(levels: Tensor) -> float:
    """Which part of the side of the square test image `levels` (3, S, S) show.

    Red and green rise by an even step per pixel: the steps that are left say how many there were.
    """
    side = levels.shape[-1]
    inner = slice(side // 8, side - side // 8)  # without what a filter does to the edges
    pixels = np.arange(side)[inner]
    steps = [
        float(np.polyfit(pixels, ramp.double().numpy()[inner], 1)[0])
        for ramp in (levels[0].mean(dim=0), levels[1].mean(dim=1))
    ]
    part = sum(steps) / 2 * side / _RISE
    if not 0.2 < part < 1.05:
        raise _Differs("it pads images, or turns them")
    return part


def _colours(processor: Any) -> tuple[bool, NDArray[np.float64], NDArray[np.float64]]:
    """(whether blue comes first, mean, std) of values in 0..1, both in the order RGB."""
    rows = []
    for colour in _SOLIDS:
        image = np.full((*_SQUARE, 3), colour, dtype=np.uint8)
        rows.append(_shown(processor, image).double().mean(dim=(1, 2)).numpy())
    black, *colours = rows
    gains = (np.stack(colours) - black) / (200 / 255)  # of each input channel in each output
    blue_first = abs(gains[0, 2]) > abs(gains[0, 0])
    if blue_first:
        gains, black = gains[:, ::-1], black[::-1]
    gain = np.diag(gains)
    if not (gain > 0).all() or not np.allclose(gains, np.diag(gain), atol=1e-3 * gain.max()):
        raise _Differs("it mixes or drops colour channels")
    return blue_first, -black / gain, 1 / gain


def _snapped(
    measured: NDArray[np.float64], stated: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The stated numbers where the measured ones agree with them, else the measured."""
    if np.allclose(measured, stated, rtol=1e-4, atol=1e-4):
        return stated
    red, green, blue = (float(f"{value:.6g}") + 0.0 for value in measured)  # + 0.0: no minus zero
    return red, green, blue


def _squeezes(processor: Any) -> bool:
    """Whether a wide image is squeezed to a square: shown as if it had been square before."""
    wide = _test_image(*_LANDSCAPE)
    square = np.asarray(Image.fromarray(wide).resize((389, 389), Image.Resampling.BILINEAR))
    shown, squeezed = _shown(processor, wide), _shown(processor, square)
    spread = float(shown.max() - shown.min()) or 1.0
    return float((shown - squeezed).abs().mean()) <= MEAN_LEVELS / 255 * spread


def _difference(shown: Tensor, size: tuple[int, int], settings: ImagePreprocessing) -> str | None:
    """How our view of the test image of `size` differs from what the processor has `shown`."""
    side = settings.image_size_px
    if shown.shape[-1] != side:
        return f"it makes {shown.shape[-1]} x {shown.shape[-1]} px, and {side} x {side} of others"
    view: Literal["crop", "whole"] = "whole" if settings.squeezes else "crop"
    image = torch.from_numpy(_test_image(*size)).permute(2, 0, 1)
    ours = evaluation_view(image, Preprocessing(image=settings, image_view=view)).float()
    difference = (_levels(shown, settings) - ours).abs()
    mean, most, pixel = float(difference.mean()), float(difference.max()), _RISE / side
    if mean <= MEAN_LEVELS + MEAN_SHIFT_PX * pixel and most <= MOST_LEVELS + MOST_SHIFT_PX * pixel:
        return None
    return (
        f"it makes other values than ours, by {mean:.1f} of 255 on average and {most:.0f} at most"
    )


def _levels(shown: Tensor, settings: ImagePreprocessing) -> Tensor:
    """What a processor has `shown` (3, S, S) as RGB levels, by the numbers of `settings`."""
    rgb = shown.flip(0) if settings.channels == "BGR" else shown
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    return (rgb * std[:, None, None] + mean[:, None, None]) * 255


def _shown(processor: Any, image: NDArray[np.uint8]) -> Tensor:
    """What `processor` makes of an image (H, W, 3): (3, S, S) float32."""
    height, width = image.shape[:2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = processor(Image.fromarray(image), return_tensors="pt")
            pixels = torch.as_tensor(made["pixel_values"])[0].float()
    except Exception as error:  # it may raise anything
        said = first_line(error, with_type=True)
        raise _Differs(f"it does not take one image ({said})") from None
    if pixels.dim() != 3 or pixels.shape[0] != 3 or pixels.shape[1] != pixels.shape[2]:
        shape = " x ".join(map(str, pixels.shape))
        raise _Differs(f"an image of {width} x {height} px becomes an array of {shape}")
    return pixels


def _test_image(height: int, width: int) -> NDArray[np.uint8]:
    """A strongly coloured image (H, W, 3): red rises to the right, green downwards; blue in waves.

    Smooth, so that resampling matters little; no two sides or channels are alike.
    """
    down, right = np.mgrid[0:height, 0:width]
    down, right = (down + 0.5) / height, (right + 0.5) / width
    red, green = 20 + _RISE * right, 15 + _RISE * down
    blue = 120 + 100 * np.sin(5 * right + 3 * down)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def _side(size: Any) -> int | None:
    """The side in pixels, from any of the forms in which processors write a size."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if size else None


def _three(values: Any) -> tuple[float, float, float] | None:
    """Three numbers by channel from a list of three, or from one number for all."""
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    red, green, blue = (float(value) for value in values)
    return red, green, blue
