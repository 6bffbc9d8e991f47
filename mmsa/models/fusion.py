"""Fusion heads: features of one or two modalities -> logits.

A head is a class with its own `Settings`, registered by `register_fusion`. The configuration, its
checks and the model read everything else from the class.

Shapes: B batch, D features, W width inside attention, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from mmsa.config import FusionConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import PartSettings, Registry, nearest, section_of, settings_problems


class FusionSettings(PartSettings):
    """Base of a head's own settings: what is under `model.fusion` next to the name."""


class MlpSettings(FusionSettings):
    """Settings of the heads that are a plain stack of linear layers."""

    hidden: list[PositiveInt] = Field([512], description="widths between features and logits")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each hidden ReLU")
    batch_norm: bool = Field(False, description="after each hidden linear layer")


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


class FusionHead(nn.Module):
    """Features -> logits (B, num_outputs). A subclass declares its settings and modalities.

    It is built as `Head(settings, text_width, image_width, num_outputs)`; the width of a modality
    that it does not use is 0. The model builds no encoder for such a modality and passes None.
    """

    name: ClassVar[str]  # set by `register_fusion`
    Settings: ClassVar[type[FusionSettings]] = FusionSettings
    uses_text: ClassVar[bool] = True
    uses_image: ClassVar[bool] = True

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        """Features (B, D_text) and (B, D_image) -> logits (B, num_outputs)."""
        raise NotImplementedError


FUSIONS: Registry[type[FusionHead]] = Registry("fusion head")
register_fusion = FUSIONS.register  # the head becomes `model.fusion.name: NAME`


@register_fusion("concat")
class ConcatFusion(FusionHead):
    """The features concatenated, through a stack of linear layers."""

    Settings = MlpSettings

    def __init__(
        self, settings: MlpSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.classifier = _mlp(text_width + image_width, settings, num_outputs)

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
        self.classifier = _mlp(2 * width, stack, num_outputs)

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
        self.classifier = _mlp(text_width, settings, num_outputs)

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
        self.classifier = _mlp(image_width, settings, num_outputs)

    def forward(self, text_features: Tensor | None, image_features: Tensor | None) -> Tensor:
        assert image_features is not None
        return self.classifier(image_features)


def fusion_class(name: str) -> type[FusionHead]:
    """The class of the head `name`; `UserError` with the nearest name where there is none."""
    if name not in FUSIONS:
        raise UserError(_unknown_fusion(name))
    return FUSIONS[name]


def build_fusion(
    config: FusionConfig, text_width: int, image_width: int, num_outputs: int
) -> FusionHead:
    """Build the head of `config`; the width of a modality that it does not use is ignored (0).

    Raises `UserError` for an unknown name and for settings that do not fit the head.
    """
    head_class = fusion_class(config.name)
    problems = _settings_problems(head_class, config.settings)
    if problems:
        raise UserError(one_or_many(problems, where="model.fusion"))
    settings = head_class.Settings(**config.settings)
    build: Any = head_class  # its constructor is wider than nn.Module's
    return build(settings, text_width, image_width, num_outputs)


def fusion_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: the fusion's name and its own settings."""
    chosen = section_of(section_of(raw, "model"), "fusion")
    name = chosen.get("name", FusionConfig().name)
    if name not in FUSIONS:
        return [_unknown_fusion(str(name))]
    settings = {key: value for key, value in chosen.items() if key != "name"}
    problems = _settings_problems(FUSIONS[name], settings)
    if settings.get("batch_norm") is True and section_of(raw, "train").get("micro_batch_size") == 1:
        problems.append(
            "train.micro_batch_size=1 with model.fusion.batch_norm=true: a batch norm cannot train "
            "on one sample; use a micro-batch of at least 2, or batch_norm: false"
        )
    return problems


def _unknown_fusion(name: str) -> str:
    return f"model.fusion.name={name!r} is not a fusion; {nearest(name, FUSIONS)}"


def _settings_problems(head_class: type[FusionHead], settings: dict[str, Any]) -> list[str]:
    return settings_problems(
        head_class.Settings, settings, section="model.fusion", part=f"the fusion {head_class.name}"
    )


def _mlp(num_features: int, settings: MlpSettings, num_outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, dropout per hidden width; without any, dropout on the features."""
    layers: list[nn.Module] = []
    width = num_features
    for hidden in settings.hidden:
        layers.append(nn.Linear(width, hidden))
        if settings.batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers += [nn.ReLU(), nn.Dropout(settings.dropout)]
        width = hidden
    if not settings.hidden:
        layers.append(nn.Dropout(settings.dropout))
    layers.append(nn.Linear(width, num_outputs))
    return nn.Sequential(*layers)


def _projection(num_features: int, first: int | None, width: int) -> nn.Sequential:
    """D -> first -> W; without `first`, D -> W."""
    widths: Sequence[int] = [num_features, *([first] if first else []), width]
    return nn.Sequential(
        *(nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False))
    )
