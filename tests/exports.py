"""A tiny export with fresh weights, for tests of what uses exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmsa.config import Config, ModelConfig
from mmsa.data.text import word_tokenizer
from mmsa.export import write_export
from mmsa.labels import LABEL_NAMES
from mmsa.models.model import build_model
from mmsa.preprocessing import Preprocessing
from tests.models.tiny import image_settings, text_settings

WORDS = ["what a day", "not my day", *(f"word{number}" for number in range(13))]


def write_tiny_export(
    directory: Path,
    *,
    seed: int = 0,
    model: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Path:
    """Write an export of a model of three classes to `directory`; `seed` is that of its weights.

    `model` changes its settings (both modalities, concatenated), `sections` are others of the
    configuration. Images are packed at a short side of 64 pixels.
    """
    torch.manual_seed(seed)
    chosen = {"fusion": {"name": "concat"}, **(model or {})}
    config = ModelConfig(text_encoder=text_settings(), image_encoder=image_settings(), **chosen)
    tokenizer = word_tokenizer(WORDS, 40, max_tokens=12)
    built = build_model(config, 3, vocab_size=tokenizer.vocab_size)
    image, text = built.image_encoder, built.text_encoder
    write_export(
        directory,
        built,
        built.state_dict(),
        statistics={},
        config=Config(model=config, **sections),  # type: ignore[arg-type]
        label_names=list(LABEL_NAMES),
        preprocessing=Preprocessing(
            image=None if image is None else image.preprocessing,
            packed_short_side_px=64,
            max_tokens=None if text is None else tokenizer.max_tokens,
        ),
        tokenizer=None if text is None else tokenizer,
        facts={"step": 1, "dataset": "tiny", "shards_digest": "0" * 64},
    )
    return directory
