"""Images as people post them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def raw_image(path: Path, number: int) -> bytes:
    """Write a photo-like image to `path` and return its bytes."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((90 + number, 80), Image.Resampling.BICUBIC).save(path)
    return path.read_bytes()
