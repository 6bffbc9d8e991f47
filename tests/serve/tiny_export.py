"""An export of a tiny model, and posts for it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsa.labels import LABEL_NAMES
from tests.exports import write_tiny_export

CLASSES = list(LABEL_NAMES)
TEXTS = ["what a day", "not my day", "a", "not not what a day what a day what a day"]


def tiny_export(directory: Path, *, seed: int = 0, **model: Any) -> Path:
    """Write an export of both modalities with fresh weights; `model` are further settings."""
    return write_tiny_export(directory, seed=seed, model=model)


def picture(seed: int, *, side: int = 80, kind: str = "JPEG") -> bytes:
    """A picture's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side + 20)).save(buffer, kind)
    return buffer.getvalue()


def post(number: int) -> dict[str, Any]:
    """A post as JSON."""
    encoded = base64.b64encode(picture(number)).decode()
    return {"text": TEXTS[number % len(TEXTS)], "image": encoded}
