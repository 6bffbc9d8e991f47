"""The model: encoders that make features, a fusion head that makes logits, and its loss.

Shapes: B batch, T tokens, S input side in pixels, D features, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsa.config import ModelConfig
from mmsa.errors import UserError, one_or_many
from mmsa.models.fusion import FusionHead, build_fusion, fusion_class
from mmsa.models.image_encoders import ImageEncoder, build_image_encoder
from mmsa.models.text_encoders import TextEncoder, build_text_encoder
from mmsa.preprocessing import ImagePreprocessing


class SentimentModel(nn.Module):
    """Text and picture -> logits. An encoder that the fusion head does not use is None.

    The names of its tensors begin with `text_encoder.`, `image_encoder.` or `fusion.`; exports
    hold them under these names.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | None,
        image_encoder: ImageEncoder | None,
        fusion: FusionHead,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.fusion = fusion

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """`input_ids`, `attention_mask` (B, T) int64, `images` (B, 3, S, S) uint8 -> logits (B, C).

        With one logit (binary cross-entropy) C is 1. What an absent encoder would take may be None.
        """
        text_features = image_features = None
        if self.text_encoder is not None:
            text_features = self.text_encoder(input_ids, attention_mask)  # (B, D_text)
        if self.image_encoder is not None:
            image_features = self.image_encoder(images)  # (B, D_image)
        return self.fusion(text_features, image_features)


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    vocab_size: int | None = None,
    preprocessing: ImagePreprocessing | None = None,
) -> SentimentModel:
    """Build encoders and fusion head of `config`, with their weights, frozen as it says.

    `vocab_size` is the number of ids of the tokenizer; `preprocessing` replaces the image encoder's
    own (an export brings the one that it was trained with). Fresh weights come from torch's global
    generator: the caller seeds it first.

    Raises `UserError` for weights that cannot be had, and for settings that do not fit together.
    """
    num_outputs = _num_outputs(config, num_classes)
    head_class = fusion_class(config.fusion.name)
    text_encoder = image_encoder = None
    problems: list[str] = []  # of both encoders: who lacks one checkpoint often lacks the other
    try:
        if head_class.uses_text:
            text_encoder = build_text_encoder(config.text_encoder, vocab_size)
    except UserError as error:
        problems.append(str(error))
    try:
        if head_class.uses_image:
            image_encoder = build_image_encoder(config.image_encoder, preprocessing)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(one_or_many(problems, where="the model cannot be built"))
    fusion = build_fusion(
        config.fusion,
        0 if text_encoder is None else text_encoder.width,
        0 if image_encoder is None else image_encoder.width,
        num_outputs,
    )
    return SentimentModel(text_encoder, image_encoder, fusion)


def _num_outputs(config: ModelConfig, num_classes: int) -> int:
    if config.loss == "cross_entropy":
        return num_classes
    if num_classes != 2:
        raise UserError(
            f"model.loss=binary_cross_entropy tells two classes apart and there are {num_classes}; "
            "keep or merge two with data.classes, or use cross_entropy"
        )
    return 1


def self_contained(config: ModelConfig, model: SentimentModel) -> ModelConfig:
    """The same architecture, described so that it is built without any file or network.

    Weights are `none` and the sizes of Hugging Face models stand under `config`: what an export
    writes down, to be filled with its own tensors.
    """
    text, image = config.text_encoder, config.image_encoder
    if model.text_encoder is not None:
        sizes = model.text_encoder.hf_config
        text = text.model_copy(update={"weights": "none", "config": sizes})
    if model.image_encoder is not None:
        sizes_or_none = model.image_encoder.hf_config
        image = image.model_copy(update={"weights": "none", "config": sizes_or_none})
    return config.model_copy(update={"text_encoder": text, "image_encoder": image})


class ParameterCount(NamedTuple):
    """Numbers of parameters of one part."""

    trained: int
    frozen: int


def _parts(model: SentimentModel) -> dict[str, nn.Module]:
    """The parts of `model` that exist, by the name under which their tensors stand."""
    named: dict[str, nn.Module | None] = {}
    for kind, encoder in (
        ("text_encoder", model.text_encoder),
        ("image_encoder", model.image_encoder),
    ):
        if encoder is not None:
            named[f"{kind}.body"] = encoder.body
            named[f"{kind}.projection"] = encoder.projection
    named["fusion"] = model.fusion
    return {name: part for name, part in named.items() if part is not None}


def count_parameters(model: SentimentModel) -> dict[str, ParameterCount]:
    """Parameters trained and frozen per part: encoder bodies, projections, fusion head."""
    counts = {}
    for name, part in _parts(model).items():
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        counts[name] = ParameterCount(trained, frozen)
    return counts


def parameter_groups(model: SentimentModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trained parameters with their names in the model, by whose learning rate they follow.

    The groups are "text" and "image" (the bodies) and "head" (fusion and projections); each is
    there, perhaps empty.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"text": [], "image": [], "head": []}
    owners = {"text_encoder.body": "text", "image_encoder.body": "image"}
    for name, part in _parts(model).items():
        groups[owners.get(name, "head")] += [
            (f"{name}.{key}", p) for key, p in part.named_parameters() if p.requires_grad
        ]
    return groups


def per_sample_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    loss: str = "cross_entropy",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each sample, (B,) float32, weighted but not averaged.

    `logits` (B, C), or (B, 1) with `loss` "binary_cross_entropy"; `labels` (B,) int64, or soft
    targets (B, C) that sum to 1; `class_weights` (C,) multiply the loss of their class. The caller
    divides by the number of real samples of the global batch (docs/architecture.md), never by a sum
    of weights.

    `label_smoothing` e moves e of the target evenly to all classes. With class weights,
    cross-entropy weights each class's share of a smoothed target by that class's weight
    (`torch.nn.CrossEntropyLoss`); binary cross-entropy weights the sample by its own class.
    """
    logits = logits.float()
    if loss == "cross_entropy":
        return functional.cross_entropy(
            logits,
            labels,
            weight=class_weights,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    assert logits.shape[1] == 1, logits.shape
    shares = functional.one_hot(labels, 2).float() if labels.ndim == 1 else labels  # (B, 2)
    target = shares[:, 1] * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return losses if class_weights is None else losses * (shares @ class_weights)


def probabilities(logits: Tensor) -> Tensor:
    """Logits (B, C) -> (B, C) by softmax; one logit (B, 1) -> (B, 2) by the sigmoid. float32."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    return torch.softmax(logits, dim=1)
