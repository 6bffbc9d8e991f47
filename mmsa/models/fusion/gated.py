"""The fusion head `gated`: a learned gate between text and image, for each sample.

Shapes: B batch, D features, W width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmsa.models.fusion.head import (
    FusionHead,
    FusionSettings,
    MlpSettings,
    mlp,
    register_fusion,
)


class GatedSettings(FusionSettings):
    """A common width, how many gates a sample has, a classifier."""

    width: PositiveInt = Field(256, description="common width of text and image")
    gates: Literal["sample", "feature"] = Field(
        "sample", description="one gate per sample, or one for each feature of the common width"
    )
    hidden: list[PositiveInt] = Field([], description="widths of the classifier")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the classifier")


@register_fusion("gated")
class GatedFusion(FusionHead):
    """The Gated Multimodal Unit of Arevalo et al. 2017 (the bimodal case):

        h_v = tanh(W_v x_v), h_t = tanh(W_t x_t), z = sigmoid(W_z [x_v, x_t]),
        h = z h_v + (1 - z) h_t

    x_v are the image's features and x_t the text's. The paper's z has one gate for each feature;
    by default there is one for all, so that its mean says how much the image counts. Both have
    biases here. `image_gate` is logged: z, averaged over features and samples.
    """

    Settings = GatedSettings
    measures = ("image_gate",)

    def __init__(
        self, settings: GatedSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        width = settings.width
        self.text_projection = nn.Linear(text_width, width)
        self.image_projection = nn.Linear(image_width, width)
        num_gates = width if settings.gates == "feature" else 1
        self.gate = nn.Linear(image_width + text_width, num_gates)
        classifier = MlpSettings(hidden=settings.hidden, dropout=settings.dropout)
        self.classifier = mlp(width, classifier, num_outputs)

    def forward(self, text_features: Tensor, image_features: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([image_features, text_features], dim=1)))
        text = torch.tanh(self.text_projection(text_features))  # (B, W)
        image = torch.tanh(self.image_projection(image_features))  # (B, W)
        self.tell(image_gate=gate.float().mean(dim=1))
        logits: Tensor = self.classifier(gate * image + (1 - gate) * text)
        return logits
