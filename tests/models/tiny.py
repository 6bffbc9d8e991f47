"""Tiny encoders' settings: real architectures, few parameters."""

from __future__ import annotations

from typing import Any

TEXT_SIZES: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
IMAGE_SIZES: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 4, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


def text_settings(**more: Any) -> dict[str, Any]:
    """Settings of `model.text_encoder`: fresh weights unless `more` says otherwise."""
    return {"weights": "none", "config": TEXT_SIZES, **more}


def image_settings(**more: Any) -> dict[str, Any]:
    """Settings of `model.image_encoder`, likewise."""
    return {"name": "hf:tiny", "weights": "none", "config": IMAGE_SIZES, "image_size_px": 32} | more
