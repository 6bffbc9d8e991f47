"""What the card of a timm model (`pretrained_cfg`) says: its input, its classifier's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa.errors import UserError
from mmsa.models.weights import State
from mmsa.preprocessing import ImagePreprocessing

_FILTERS = {"bilinear": "bilinear", "nearest": "nearest"}  # bicubic for all others (Lanczos)


def preprocessing_of(card: Mapping[str, Any], name: str) -> ImagePreprocessing:
    """The numbers that do what timm's evaluation transform does (`timm.data.create_transform`).

    Of an input that is not square the short side counts. Raises `UserError` for a padded border,
    which our views do not make.
    """
    from timm.data import resolve_data_config

    stated = resolve_data_config(pretrained_cfg=dict(card))
    channels, height, width = stated["input_size"]
    side, share = min(height, width), stated["crop_pct"]
    if channels != 3 or stated["crop_mode"] == "border" or share > 1:
        raise UserError(
            f"timm's {name} takes images with {channels} channels and crop mode "
            f"{stated['crop_mode']} ({share:g}), and a border is not reproduced. Expected RGB, "
            "cut from the centre or squeezed; choose another image encoder"
        )
    interpolation: Any = _FILTERS.get(stated["interpolation"], "bicubic")
    return ImagePreprocessing(
        image_size_px=side,
        resize_px=int(side / share),  # timm rounds down
        mean=tuple(stated["mean"]),
        std=tuple(stated["std"]),
        interpolation=interpolation,
        squeezes=stated["crop_mode"] == "squash",
    )


def _classifiers(card: Mapping[str, Any]) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin."""
    stated = card.get("classifier") or ()
    names = (stated,) if isinstance(stated, str) else tuple(stated)
    return tuple(f"{name}." for name in names)


def is_of_classifier(key: str, card: Mapping[str, Any]) -> bool:
    return key.startswith(_classifiers(card))


def class_counts(state: State, card: Mapping[str, Any]) -> list[int]:
    """How many classes the weights may have: what their classifier says, or the model's own."""
    found = [
        state[f"{prefix}weight"].shape[0]
        for prefix in _classifiers(card)[:1]
        if f"{prefix}weight" in state
    ]
    return list(dict.fromkeys([*(found or [0]), int(card.get("num_classes") or 0)]))
