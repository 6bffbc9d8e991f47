"""The model: encoders make features, a fusion head makes logits; and its loss.

Shapes: B batch, T tokens, S input side in pixels, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa.config import (
    ImageEncoderConfig,
    LossConfig,
    ModelConfig,
    Projection,
    TextEncoderConfig,
)
from mmsa.data.manifest import Modality
from mmsa.data.packed_texts import PackedTexts, TextPacking
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import modules_outside
from mmsa.hub import NotOnThisMachine
from mmsa.models.auxiliary import auxiliary_problems, build_auxiliary
from mmsa.models.build_encoders import (
    build_image_encoder,
    build_text_encoder,
    encoder_problems,
    families_of,
)
from mmsa.models.encoders import Encoder, ImageEncoder
from mmsa.models.fusion import FusionHead, build_fusion, fusion_class, fusion_problems
from mmsa.models.fusion.sequences import Features, one_row
from mmsa.models.losses import build_loss, loss_class, loss_problems, num_outputs
from mmsa.models.missing_weights import missing_weights
from mmsa.models.stand_ins import StandIn, chosen_stand_ins, stand_in_problems
from mmsa.models.text_encoders import TextEncoder
from mmsa.preprocessing import ImagePreprocessing

# Checks of the model's section for `mmsa.config.load_config`.
MODEL_CHECKS = (
    fusion_problems,
    stand_in_problems,
    encoder_problems,
    loss_problems,
    auxiliary_problems,
)


class SentimentModel(nn.Module):
    """Text and image -> logits. An encoder that the fusion head does not use is None.

    `stand_ins` has the modalities that a sample may lack. The names of its tensors begin with
    `text_encoder.`, `image_encoder.`, `stand_ins.`, `fusion.` or `auxiliary.`, in exports too.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | None,
        image_encoder: ImageEncoder | None,
        fusion: FusionHead,
        stand_ins: Iterable[Modality] = (),
        auxiliary: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        encoders = {"text": text_encoder, "image": image_encoder}
        widths = {name: one.width for name, one in encoders.items() if one is not None}
        self.stand_ins = nn.ModuleDict({name: StandIn(widths[name]) for name in stand_ins})
        self.fusion = fusion
        self.auxiliary = auxiliary  # heads by modality, which only training calls

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        text_present: Tensor | None = None,
        image_present: Tensor | None = None,
        packed: PackedTexts | None = None,
        *,
        auxiliary: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """`input_ids`, `attention_mask` (B, T) int64, `images` (B, 3, S, S) uint8 -> logits (B, C).

        With one logit (binary cross-entropy) C is 1. The inputs of an absent encoder may be None.
        `text_present` and `image_present` (B,) bool say which samples have the modality; None: all.
        The inputs of the others are read, but their features do not count. `packed` are the texts
        again, packed as `packing` says. With `auxiliary` the logits of the auxiliary heads are
        returned too, by modality.
        """
        features: dict[Modality, Features] = {}
        if self.text_encoder is not None:
            # (B, D) or (B, T, D)
            features["text"] = self.text_encoder(input_ids, attention_mask, packed)
        if self.image_encoder is not None:
            features["image"] = self.image_encoder(images)  # (B, D) or (B, P, D)
        present = {"text": text_present, "image": image_present}
        given = {
            name: self._with_stand_in(name, features[name], present[name]) for name in features
        }
        logits: Tensor = self.fusion(given.get("text"), given.get("image"))
        if not auxiliary or self.auxiliary is None:
            return logits
        # Of what the encoders saw, also where it is masked for the pair.
        rows = {str(name): one_row(found) for name, found in features.items()}
        return logits, {name: head(rows[name]) for name, head in self.auxiliary.items()}

    def packing(self, pad_rows_to: int = 1) -> TextPacking | None:
        """How a loader packs texts for this model; None where it does not."""
        return None if self.text_encoder is None else self.text_encoder.packing(pad_rows_to)

    def _with_stand_in(
        self, modality: Modality, features: Features, present: Tensor | None
    ) -> Features:
        """`features` with the modality's stand-in where it is missing."""
        if modality in self.stand_ins:
            replaced: Features = self.stand_ins[modality](features, present)
            return replaced
        assert present is None, f"the model has no stand-in for a missing {modality}"
        return features


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    vocab_size: int | None = None,
    preprocessing: ImagePreprocessing | None = None,
) -> SentimentModel:
    """Build encoders and fusion head of `config`, with their weights, frozen as it says.

    `vocab_size` is the number of ids of the tokenizer; `preprocessing` replaces the image encoder's
    own (an export has that of its training). Fresh weights come from torch's global generator,
    which the caller seeds first.

    Raises `UserError` for weights that cannot be loaded, and for settings that do not fit together.
    """
    outputs = num_outputs(config, num_classes)
    head_class = fusion_class(config.fusion.name)
    sequences = head_class.takes == "sequences"
    text_encoder = image_encoder = None
    problems: list[str] = []  # of both encoders: checkpoints are often missing together
    missing: list[str] = []
    try:
        if head_class.uses_text:
            text_encoder = build_text_encoder(config.text_encoder, vocab_size, sequences=sequences)
    except NotOnThisMachine as error:
        missing += error.problems
    except UserError as error:
        problems.append(str(error))
    try:
        if head_class.uses_image:
            image_encoder = build_image_encoder(
                config.image_encoder, preprocessing, sequences=sequences
            )
    except NotOnThisMachine as error:
        missing += error.problems
    except UserError as error:
        problems.append(str(error))
    if missing:
        raise missing_weights(config, missing + problems, extension_modules(config))
    if problems:
        raise UserError(one_or_many(problems, where="the model cannot be built"))
    widths = {
        "text": 0 if text_encoder is None else text_encoder.width,
        "image": 0 if image_encoder is None else image_encoder.width,
    }
    fusion = build_fusion(config.fusion, widths["text"], widths["image"], outputs)
    auxiliary = build_auxiliary(config.auxiliary, widths, outputs)
    return SentimentModel(text_encoder, image_encoder, fusion, chosen_stand_ins(config), auxiliary)


def self_contained(config: ModelConfig, model: SentimentModel) -> ModelConfig:
    """The same architecture, described so that it is built without any file or network.

    Weights are `none` and each encoder's architecture is under `config`: exports contain this, and
    their own tensors.
    """
    text, image = config.text_encoder, config.image_encoder
    if model.text_encoder is not None:
        sizes = model.text_encoder.architecture
        pooling = model.text_encoder.pooling  # what `auto` became
        text = text.model_copy(update={"weights": "none", "config": sizes, "pooling": pooling})
        text = text.model_copy(update={"projection": _width(text, model.text_encoder)})
    if model.image_encoder is not None:
        sizes_or_none = model.image_encoder.architecture
        image = image.model_copy(update={"weights": "none", "config": sizes_or_none})
        image = image.model_copy(update={"projection": _width(image, model.image_encoder)})
    described = config.model_copy(update={"text_encoder": text, "image_encoder": image})
    if model.stand_ins:  # what `auto` became
        described = described.model_copy(update={"stand_ins": tuple(model.stand_ins)})
    return described


def _width(config: TextEncoderConfig | ImageEncoderConfig, encoder: Encoder) -> Projection:
    """The projection as a number, where it was the checkpoint's own."""
    return encoder.width if config.projection == "own" else config.projection


def extension_modules(config: ModelConfig) -> list[str]:
    """The modules outside this package that a model of `config` needs, sorted."""
    head = fusion_class(config.fusion.name)
    families = families_of(config, text=head.uses_text, image=head.uses_image)
    return modules_outside([head, loss_class(config.loss), *families])


class ParameterCount(NamedTuple):
    """Numbers of parameters of one part."""

    trained: int
    frozen: int


def _parts(model: SentimentModel) -> dict[str, nn.Module]:
    """The parts of `model` that exist, by the prefix of their tensors' names."""
    named: dict[str, nn.Module | None] = {}
    for kind, encoder in (
        ("text_encoder", model.text_encoder),
        ("image_encoder", model.image_encoder),
    ):
        if encoder is not None:
            named[f"{kind}.body"] = encoder.body
            named[f"{kind}.projection"] = encoder.projection
    if model.stand_ins:
        named["stand_ins"] = model.stand_ins
    named["fusion"] = model.fusion
    named["auxiliary"] = model.auxiliary
    return {name: part for name, part in named.items() if part is not None}


def count_parameters(model: SentimentModel) -> dict[str, ParameterCount]:
    """Parameters trained and frozen per part: encoder bodies, projections, stand-ins, heads."""
    counts = {}
    for name, part in _parts(model).items():
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        counts[name] = ParameterCount(trained, frozen)
    return counts


def parameter_groups(model: SentimentModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trained parameters with their names in the model, by learning rate.

    The groups are "text" and "image" (the bodies) and "head" (fusion, projections, stand-ins and
    auxiliary heads), all three always; they may be empty.
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
    targets: Tensor,
    *,
    loss: str | LossConfig = "cross_entropy",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each sample, (B,) float32, weighted but not averaged: see `losses.Loss`.

    `logits` (B, number of outputs); `targets` are labels (B,) int64, or soft targets (B, C) that
    sum to 1; `class_weights` (C,). `loss` is the setting `model.loss`.
    """
    return build_loss(loss).per_sample(
        logits.float(), targets, class_weights=class_weights, label_smoothing=label_smoothing
    )


def probabilities(logits: Tensor) -> Tensor:
    """Logits (B, C) -> (B, C) by softmax; one logit (B, 1) -> (B, 2) by the sigmoid. float32."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    return torch.softmax(logits, dim=1)
