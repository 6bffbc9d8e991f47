"""Auxiliary heads: one linear layer per modality, trained on that modality's own label.

They give each encoder a gradient of its own and take no part in a prediction. Their loss is added
to that of the pair with the weights of `model.auxiliary`.

Shapes: B batch, D features, C outputs of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmsa.config import AuxiliaryConfig, FusionConfig
from mmsa.data.modality_labels import MODALITIES, NO_LABEL
from mmsa.foundation.registry import section_of
from mmsa.models.fusion import FUSIONS
from mmsa.models.losses import Loss


def auxiliary_weights(config: AuxiliaryConfig) -> dict[str, float]:
    """Modality -> weight of its loss, of the heads that a model of `config` has."""
    weights = {modality: float(getattr(config, modality)) for modality in MODALITIES}
    return {modality: weight for modality, weight in weights.items() if weight > 0}


def build_auxiliary(
    config: AuxiliaryConfig, widths: Mapping[str, int], num_outputs: int
) -> nn.ModuleDict | None:
    """The heads of `config`, D -> `num_outputs`; None where it has none.

    `widths` is D of each modality. Fresh weights come from torch's global generator.
    """
    wanted = auxiliary_weights(config)
    heads = {modality: nn.Linear(widths[modality], num_outputs) for modality in wanted}
    return nn.ModuleDict(heads) if heads else None


def auxiliary_loss(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    *,
    loss: Loss,
    weights: Mapping[str, float],
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """The weighted losses of the heads for each sample, (B,) float32, added up.

    `logits` are (B, C) by modality; `labels` (B, 2) are a batch's `modality_labels`. A sample adds
    nothing for a modality that it has no label of. The caller divides by the number of real samples
    as for the loss of the pair, so the gradient does not depend on how a batch is divided.
    """
    total = torch.zeros(len(labels), device=labels.device)
    for modality, weight in weights.items():
        own = labels[:, MODALITIES.index(modality)]  # (B,)
        losses = loss.per_sample(
            logits[modality].float(),
            own.clamp(min=0),
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
        total = total + weight * torch.where(own != NO_LABEL, losses, 0.0)
    return total


def auxiliary_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: a head needs the encoder of its modality."""
    model = section_of(raw, "model")
    name = section_of(model, "fusion").get("name", FusionConfig().name)
    head = FUSIONS.get(name)
    wanted = section_of(model, "auxiliary")
    if head is None:
        return []  # the fusion's own check reports it
    used = {"text": head.uses_text, "image": head.uses_image}
    return [
        f"model.auxiliary.{modality}={weight} needs a {modality} encoder, and the fusion {name} "
        f"uses none; set model.auxiliary.{modality}=0, or choose another model.fusion.name"
        for modality, weight in wanted.items()
        if modality in used and weight and not used[modality]
    ]
