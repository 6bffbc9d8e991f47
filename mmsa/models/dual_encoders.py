"""Dual encoders of Hugging Face: CLIP, SigLIP, SigLIP 2 and their like, one network per modality.

One checkpoint gives both encoders: `model.text_encoder.name: NAME` takes its text part and
`model.image_encoder.name: hf:NAME` its image part, each with the tokenizer or image processor of
the checkpoint. What they were trained with to compare texts and images, a linear layer after each,
is taken by `projection: own`.

Shapes: B batch, T tokens, S input side in pixels, P patches, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.errors import UserError

_NAMES = {"text": "text_model", "image": "vision_model"}
_PROJECTIONS = {"text": "text_projection", "image": "visual_projection"}
# Text parts whose features are those of the last of `max_position_embeddings` tokens, padding
# included, after a linear layer (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training").
_OF_FULL_LENGTH = ("siglip_text_model", "siglip2_text_model")
_OF_PATCHES = "siglip2_vision_model"


@dataclass(frozen=True)
class Part:
    """One modality of a model.

    `described` is the configuration that builds it again: its own, or that of the whole model where
    `AutoModel` does not know its own. `prefix` is what its tensors' names begin with in the model.
    """

    model: Any
    described: Any
    prefix: str = ""
    projection: nn.Linear | None = None


def part_of(model: Any, modality: Literal["text", "image"]) -> Part:
    """The network of `modality` in `model`; all of it where it is not a dual encoder."""
    from transformers import MODEL_MAPPING

    name = _NAMES[modality]
    inner = getattr(model, name, None)
    if inner is None or (modality == "text" and not _has_text_part(model)):
        return Part(model, model.config)
    described = inner.config if type(inner.config) in MODEL_MAPPING else model.config
    projection = getattr(model, _PROJECTIONS[modality], None)
    linear = projection if isinstance(projection, nn.Linear) else None
    return Part(inner, described, f"{name}.", linear)


def sizes_of(config: Any, modality: Literal["text", "image"]) -> Any:
    """Where a configuration has the sizes of `modality`: in a part of its own, or in itself."""
    return getattr(config, "text_config" if modality == "text" else "vision_config", config)


def plain_projection(config: TextEncoderConfig | ImageEncoderConfig, section: str) -> int | None:
    """The width of the projection of an encoder that has none of its own.

    Raises `UserError` for `projection: own`.
    """
    if config.projection == "own":
        raise UserError(
            f"{section}.projection=own, but {config.name} has no projection of its own (CLIP, "
            "Chinese-CLIP and AltCLIP have one); give a number, or null"
        )
    return config.projection


def plain_pooling(
    config: TextEncoderConfig, section: str
) -> Literal["auto", "cls", "mean", "last"]:
    """The pooling of an encoder that does not pool by itself; `UserError` for `pooling: own`."""
    if config.pooling == "own":
        raise UserError(
            f"{section}.pooling=own is for text encoders that pool by themselves (SigLIP), and "
            f"{config.name} does not; use auto, cls, mean or last"
        )
    return config.pooling


def projection_width(
    part: Part, config: TextEncoderConfig | ImageEncoderConfig, section: str
) -> int | None:
    """The width of the projection of an encoder of `part`: with `own` that of the checkpoint's.

    Raises `UserError` where the checkpoint has none.
    """
    if config.projection == "own" and part.projection is not None:
        return part.projection.out_features
    return plain_projection(config, section)


@torch.no_grad()
def begin_with(projection: nn.Linear | None, own: nn.Linear | None) -> None:
    """Give `projection` the weights of the checkpoint's own. A bias that it lacks begins at 0."""
    assert projection is not None
    assert own is not None
    projection.weight.copy_(own.weight)
    if own.bias is None:
        nn.init.zeros_(projection.bias)
    else:
        projection.bias.copy_(own.bias)


class TextsOfFullLength(nn.Module):
    """A text part that was trained on texts of one length, whose padding it reads too (SigLIP)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`input_ids`, `attention_mask` (B, T) -> rows of the tokens (B, T, D), features (B, D).

        Behind each text is the padding of `config.pad_token_id`, up to the length of the training.
        """
        num_tokens, pad = input_ids.shape[1], self.config.pad_token_id or 0
        full = input_ids.new_full((input_ids.shape[0], self.config.max_position_embeddings), pad)
        if num_tokens > full.shape[1]:
            raise ValueError(f"{num_tokens} tokens, and it reads {full.shape[1]} at most")
        full[:, :num_tokens] = torch.where(attention_mask > 0, input_ids, pad)
        output = self.model(input_ids=full)
        return output.last_hidden_state[:, :num_tokens], output.pooler_output


def text_body(part: Part) -> nn.Module:
    """The body of a text encoder of `part`."""
    if part.model.config.model_type in _OF_FULL_LENGTH:
        return TextsOfFullLength(part.model)
    model: nn.Module = part.model
    return model


def inputs_of_patches(model: Any, images: Tensor) -> dict[str, Tensor] | None:
    """The inputs of a model that takes patches of images of any shape (SigLIP 2 NaFlex).

    Normalised images (B, 3, S, S) -> pixels of patches (B, P, side x side x 3), a mask (B, P) and
    the patches in height and width (B, 2). None for a model that takes images.
    """
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != _OF_PATCHES:
        return None
    side: int = config.patch_size  # type: ignore[union-attr]
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    patches = images[:, :, : rows * side, : columns * side].reshape(
        batch, channels, rows, side, columns, side
    )
    pixels = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    shapes = torch.tensor([[rows, columns]], device=images.device).expand(batch, 2)
    mask = torch.ones(batch, rows * columns, dtype=torch.long, device=images.device)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _has_text_part(model: Any) -> bool:
    """Whether `text_model` is one of two parts, or (transformers 4) all of a text model."""
    return hasattr(model, "vision_model") or model.config.model_type.endswith("_text_model")
