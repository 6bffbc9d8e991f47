"""Made-up images whose content shows the image label.

positive: warm, bright, a sun, round shapes; negative: cold, dark, jagged shapes; neutral: grey and
flat, upright boxes. Hue, brightness and shapes each overlap between the classes: some images have a
washed-out palette or that of another class, so that shapes decide, and every image has a few shapes
of the other classes. Colours are (red, green, blue) from 0 to 255.
"""

from __future__ import annotations

import colorsys
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

_P_WEAK_PALETTE = 0.08  # images whose colours say little
_P_FOREIGN_SHAPE = 0.15  # shapes that belong to another class
_JPEG_QUALITY = 88

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Look:
    """Ranges of hue (turns; may pass 1), saturation and value (0 to 1) of a class."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    shape: str


_LOOKS = {
    "positive": _Look((-0.04, 0.20), (0.35, 0.95), (0.60, 1.00), "round"),
    "negative": _Look((0.52, 0.78), (0.25, 0.85), (0.10, 0.50), "jagged"),
    "neutral": _Look((0.0, 1.0), (0.00, 0.15), (0.35, 0.80), "box"),
}
_WEAK = _Look((0.0, 1.0), (0.05, 0.45), (0.30, 0.75), "")
_SHAPES = ("round", "jagged", "box")


def make_image(label: str, rng: np.random.Generator) -> bytes:
    """A JPEG of 96 to 320 pixels a side, aspect ratio 0.5 to 2."""
    short = int(rng.integers(96, 200))
    long = min(320, int(short * rng.uniform(1.0, 2.0)))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    look = _LOOKS[label]
    palette = _WEAK if rng.random() < _P_WEAK_PALETTE else look
    image = _background(width, height, palette, rng)
    draw = ImageDraw.Draw(image)
    if label == "positive" and rng.random() < 0.7:
        _sun(draw, width, height, rng)
    for _ in range(int(rng.integers(5, 12))):
        kind = look.shape if rng.random() >= _P_FOREIGN_SHAPE else _SHAPES[rng.integers(3)]
        colour = _colour(palette if rng.random() < 0.8 else _WEAK, rng)
        _shape(draw, kind, colour, width, height, rng)
    buffer = io.BytesIO()
    _noisy(image, rng).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _colour(look: _Look, rng: np.random.Generator) -> Colour:
    hue = rng.uniform(*look.hue) % 1.0
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(*look.saturation), rng.uniform(*look.value))
    return (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))


def _background(width: int, height: int, look: _Look, rng: np.random.Generator) -> Image.Image:
    """A gradient between two colours in a random direction."""
    first, second = np.array(_colour(look, rng)), np.array(_colour(look, rng))
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-0.5, 0.5, width) * math.cos(angle)
    down = np.linspace(-0.5, 0.5, height) * math.sin(angle)
    share = np.clip(0.5 + across[None, :] + down[:, None], 0, 1)[..., None]  # (H, W, 1)
    pixels = first * (1 - share) + second * share
    return Image.fromarray(pixels.astype(np.uint8))


def _sun(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    radius = min(width, height) * rng.uniform(0.08, 0.18)
    x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.1, 0.4) * height
    yellow = (255, int(rng.integers(200, 250)), int(rng.integers(60, 180)))
    rays = int(rng.integers(0, 13))
    for ray in range(rays):
        angle = 2 * math.pi * ray / rays
        reach = radius * 1.7
        draw.line(
            (x, y, x + reach * math.cos(angle), y + reach * math.sin(angle)), fill=yellow, width=2
        )
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=yellow)


def _shape(
    draw: ImageDraw.ImageDraw,
    kind: str,
    colour: Colour,
    width: int,
    height: int,
    rng: np.random.Generator,
) -> None:
    size = min(width, height) * rng.uniform(0.08, 0.28)
    x, y = rng.uniform(0, width), rng.uniform(0.2 * height, height)
    if kind == "round":
        flat = rng.uniform(0.7, 1.0)
        draw.ellipse((x - size / 2, y - size * flat / 2, x + size / 2, y + size * flat / 2), colour)
    elif kind == "box":
        tall = rng.uniform(0.8, 2.2)
        draw.rectangle(
            (x - size / 2, y - size * tall / 2, x + size / 2, y + size * tall / 2), colour
        )
    else:
        draw.polygon(_spikes(x, y, size, rng), colour)


def _spikes(x: float, y: float, size: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """The corners of a star with uneven points, or of a bolt when it has three."""
    points = int(rng.integers(3, 8))
    turn = rng.uniform(0, 2 * math.pi)
    corners = []
    for corner in range(2 * points):
        reach = size * (rng.uniform(0.5, 1.0) if corner % 2 == 0 else rng.uniform(0.12, 0.3))
        angle = turn + math.pi * corner / points
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grain and a change of brightness, as of another camera and another hour."""
    pixels = np.asarray(image, dtype=np.int16)  # (H, W, 3)
    grain = rng.integers(-12, 13, size=(*pixels.shape[:2], 1), dtype=np.int16)
    shift = int(rng.integers(-25, 26))
    return Image.fromarray(np.clip(pixels + grain + shift, 0, 255).astype(np.uint8))
