"""Pictures as people post them."""

from __future__ import annotations

import io

from PIL import Image


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
