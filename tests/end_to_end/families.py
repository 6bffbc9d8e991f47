"""Settings of one tiny model of each family of encoders, for tests that try all of them."""

from __future__ import annotations

import json

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_SIZES |= {"num_attention_heads": 2}


def _dual(model_type: str, projection: str, **of_text: int) -> list[str]:
    """Both encoders of one type, each with its part."""
    sizes = {
        "model_type": model_type,
        "text_config": {**_SIZES, "max_position_embeddings": 32, **of_text},
        "vision_config": {**_SIZES, "image_size": 32, "patch_size": 8},
    }
    return [
        f"model.text_encoder.config={json.dumps(sizes)}",
        f"model.image_encoder.config={json.dumps(sizes)}",
        f"model.text_encoder.projection={projection}",
        f"model.image_encoder.projection={projection}",
    ]


def _image(name: str, config: str = "null") -> list[str]:
    return [f"model.image_encoder.name={name}", f"model.image_encoder.config={config}"]


# Added to `TINY` of the harness.
FAMILIES: dict[str, list[str]] = {
    "hugging face": [],
    "torchvision": _image("resnet18"),
    "timm convolutions": _image(
        "timm:resnet18", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"
    ),
    "timm efficientnet": _image("timm:test_efficientnet"),
    "timm transformer": _image(
        "timm:vit_tiny_patch16_224", "{embed_dim: 24, depth: 2, num_heads: 2}"
    ),
    "clip": _dual("clip", "own", bos_token_id=2, eos_token_id=3, pad_token_id=0),
    "siglip": _dual("siglip", "null", pad_token_id=0),
}
EVERYTHING = [
    *["train.mixed_precision=bf16", "model.image_encoder.gradient_checkpointing=true"],
    *["model.text_encoder.gradient_checkpointing=true", "train.checkpoint_every_steps=2"],
    "train.max_steps=4",
]
