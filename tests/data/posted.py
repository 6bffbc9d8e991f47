"""Pictures as people post them."""

from __future__ import annotations

import io

from PIL import Image


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
