"""An export of a tiny model, and posts for it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmsa.config import Config, ModelConfig
from mmsa.data.text import word_tokenizer
from mmsa.export import write_export
from mmsa.models.model import build_model
from mmsa.preprocessing import Preprocessing
from tests.models.tiny import image_settings, text_settings

CLASSES = ["negative", "neutral", "positive"]
TEXTS = ["what a day", "not my day", "a", "not not what a day what a day what a day"]


def tiny_export(directory: Path, *, seed: int = 0, **model: Any) -> Path:
    """Write an export of both modalities with fresh weights; `model` are further settings."""
    torch.manual_seed(seed)
    given = {"fusion": {"name": "concat"}, **model}
    config = ModelConfig(text_encoder=text_settings(), image_encoder=image_settings(), **given)
    tokenizer = word_tokenizer(["what a day", "not my day"], 40, max_tokens=12)
    built = build_model(config, 3, vocab_size=tokenizer.vocab_size)
    image = None if built.image_encoder is None else built.image_encoder.preprocessing
    write_export(
        directory,
        built,
        built.state_dict(),
        statistics={},
        config=Config(model=config),
        label_names=CLASSES,
        preprocessing=Preprocessing(
            image=image,
            packed_short_side_px=64,
            max_tokens=tokenizer.max_tokens if built.text_encoder is not None else None,
        ),
        tokenizer=tokenizer if built.text_encoder is not None else None,
        facts={"step": 1, "dataset": "tiny", "shards_digest": "0" * 64},
    )
    return directory


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
