"""Fusion heads that take one row of features per modality.

Shapes: B batch, D features, W width inside attention, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from mmsa.models.fusion.head import (
    FusionHead,
    FusionSettings,
    MlpSettings,
    mlp,
    register_fusion,
)


class AttentionSettings(FusionSettings):
    """Two projections, one common width, attention over the two modalities, a classifier."""

    text_width: PositiveInt | None = Field(128, description="first projection; null: none")
    image_width: PositiveInt | None = Field(1280, description="first projection; null: none")
    width: PositiveInt = Field(256, description="common width, in which attention works")
    num_heads: PositiveInt = 4
    hidden: list[PositiveInt] = Field([128], description="widths of the classifier")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the classifier")

    @model_validator(mode="after")
    def _heads_divide(self) -> AttentionSettings:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by num_heads {self.num_heads}")
        return self


@register_fusion("concat")
class ConcatFusion(FusionHead):
    """The features concatenated, through a stack of linear layers."""

    Settings = MlpSettings

    def __init__(
        self, settings: MlpSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.classifier = mlp(text_width + image_width, settings, num_outputs)

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        assert text_features is not None
        assert image_features is not None
        return self.classifier(torch.cat([text_features, image_features], dim=1))


@register_fusion("attention")
class AttentionFusion(FusionHead):
    """Each modality is one token; self-attention lets each take from the other.

    Widths: D_text -> text_width -> W and D_image -> image_width -> W by linear layers; the two
    tokens (B, 2, W) through multi-head attention; both results, concatenated (B, 2 W), through the
    classifier.
    """

    Settings = AttentionSettings

    def __init__(
        self, settings: AttentionSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        width = settings.width
        self.text_projection = _projection(text_width, settings.text_width, width)
        self.image_projection = _projection(image_width, settings.image_width, width)
        self.attention = nn.MultiheadAttention(width, settings.num_heads, batch_first=True)
        stack = MlpSettings(hidden=settings.hidden, dropout=settings.dropout)
        self.classifier = mlp(2 * width, stack, num_outputs)

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        assert text_features is not None
        assert image_features is not None
        text_token = self.text_projection(text_features)  # (B, W)
        image_token = self.image_projection(image_features)  # (B, W)
        tokens = torch.stack([text_token, image_token], dim=1)  # (B, 2, W)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.classifier(attended.flatten(1))  # (B, 2 W) -> (B, C)


@register_fusion("text_only")
class TextOnly(FusionHead):
    """The text alone: the first stage of `attention`, and the baseline for a fusion."""

    Settings = MlpSettings
    uses_image = False

    def __init__(
        self, settings: MlpSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.classifier = mlp(text_width, settings, num_outputs)

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        assert text_features is not None
        return self.classifier(text_features)


@register_fusion("image_only")
class ImageOnly(FusionHead):
    """The image alone."""

    Settings = MlpSettings
    uses_text = False

    def __init__(
        self, settings: MlpSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.classifier = mlp(image_width, settings, num_outputs)

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        assert image_features is not None
        return self.classifier(image_features)


def _projection(num_features: int, first: int | None, width: int) -> nn.Sequential:
    """D -> first -> W; without `first`, D -> W."""
    widths: Sequence[int] = [num_features, *([first] if first else []), width]
    return nn.Sequential(
        *(nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False))
    )
