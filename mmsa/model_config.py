"""The section `model` of the configuration: encoders, fusion head, loss, auxiliary heads.

`mmsa/config.py` has the other sections, and is where all are imported from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mmsa.config_types import Section

# `own`: the linear layer that a dual encoder (CLIP) brings.
Projection = Annotated[int, Field(ge=1)] | Literal["own"] | None


class TextEncoderConfig(Section):
    name: str = Field("bert-base-uncased", description="Hugging Face name or directory")
    weights: str = Field("pretrained", description="pretrained, none, or a PATH")
    config: dict[str, Any] | None = Field(
        None, description="with weights none: model_type and sizes, instead of the name's own"
    )
    tokenizer: str | None = Field(
        None, description="name or directory; words:N counts N words on the train split"
    )
    pooling: Literal["auto", "cls", "mean", "last", "own"] = Field(
        "auto", description="auto: last if the encoder reads from left to right, else cls"
    )
    projection: Projection = Field(None, description="width of a linear layer after it, or own")
    train: Literal["full", "last_n", "frozen"] = "full"
    last_n: int = Field(0, ge=0, description="layers trained under train: last_n")
    gradient_checkpointing: bool = Field(False, description="compute layers twice to save memory")


class ImageEncoderConfig(Section):
    name: str = Field(
        "resnet50", description="torchvision name, timm:NAME, or hf:NAME (Hugging Face)"
    )
    weights: str = Field("pretrained", description="pretrained, none, or a PATH")
    config: dict[str, Any] | None = Field(
        None, description="hf: model_type and sizes; timm: arguments of the model"
    )
    image_size_px: int | None = Field(
        None, ge=16, le=4096, description="input side; null: the encoder's own"
    )
    projection: Projection = Field(None, description="width of a linear layer after it, or own")
    train: Literal["full", "last_n", "frozen"] = "full"
    last_n: int = Field(0, ge=0, description="stages trained under train: last_n")
    batch_norm: Literal["train", "frozen", "sync"] = Field(
        "train", description="statistics: each rank's own, the pretrained ones, or all ranks' (GPU)"
    )
    gradient_checkpointing: bool = Field(False, description="compute stages twice to save memory")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth of the last block; null: the encoder's own"
    )


class FusionConfig(Section):
    """The name of a fusion head and its own settings, which mmsa/models/fusion/ checks."""

    model_config = ConfigDict(extra="allow")
    name: str = "concat"

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LossConfig(Section):
    """The name of a loss and its own settings, which mmsa/models/losses.py checks."""

    model_config = ConfigDict(extra="allow")
    name: str = "cross_entropy"

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AuxiliaryConfig(Section):
    """Weights of the losses of heads on each modality's own label; 0: no head."""

    text: float = Field(0.0, ge=0)
    image: float = Field(0.0, ge=0)


class ModelConfig(Section):
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    fusion: FusionConfig = FusionConfig()
    stand_ins: Literal["auto"] | tuple[Literal["text", "image"], ...] = Field(
        "auto",
        description="modalities with a learned vector in place of missing features",
    )
    loss: str | LossConfig = Field(
        "cross_entropy", description="a loss's name, or a section: name and its own settings"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: inverse frequency, mean 1 over the training split"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
