"""What a fusion head is: a class with its own `Settings`, registered by `register_fusion`.

The configuration, its checks and the model read everything else from the class.

Shapes: B batch, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmsa.foundation.registry import PartSettings, Registry


class FusionSettings(PartSettings):
    """Base of a head's own settings: what is under `model.fusion` next to the name."""


class MlpSettings(FusionSettings):
    """Settings of the heads that are a plain stack of linear layers."""

    hidden: list[PositiveInt] = Field([512], description="widths between features and logits")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each hidden ReLU")
    batch_norm: bool = Field(False, description="after each hidden linear layer")


class FusionHead(nn.Module):
    """Features -> logits (B, num_outputs). A subclass declares its settings and modalities.

    It is built as `Head(settings, text_width, image_width, num_outputs)`; the width of a modality
    that it does not use is 0. The model builds no encoder for such a modality and passes None.

    `takes` says what it gets of each encoder: "vectors", one row (B, D), or "sequences", a
    `FeatureSequence` with a row for each token, patch or position. `measures` are the names of what
    the head tells about itself in each forward (`tell`): their means over the global batch are
    logged with the loss.
    """

    name: ClassVar[str]  # set by `register_fusion`
    Settings: ClassVar[type[FusionSettings]] = FusionSettings
    uses_text: ClassVar[bool] = True
    uses_image: ClassVar[bool] = True
    takes: ClassVar[Literal["vectors", "sequences"]] = "vectors"
    measures: ClassVar[tuple[str, ...]] = ()
    _told: Mapping[str, Tensor] = MappingProxyType({})

    def forward(self, text_features: Any, image_features: Any) -> Tensor:
        """Features (B, D_text) and (B, D_image), or their sequences -> logits (B, num_outputs)."""
        raise NotImplementedError

    def tell(self, **values: Tensor) -> None:
        """Note the value of each measure for each sample, (B,), as this forward found it."""
        assert set(values) == set(self.measures), (self.measures, list(values))
        self._told = {name: value.detach().float() for name, value in values.items()}

    @property
    def told(self) -> Mapping[str, Tensor]:
        """What the last forward told, by name: (B,) each. Empty for a head without measures."""
        return self._told


FUSIONS: Registry[type[FusionHead]] = Registry("fusion head")
register_fusion = FUSIONS.register  # the head becomes `model.fusion.name: NAME`


def mlp(num_features: int, settings: MlpSettings, num_outputs: int) -> nn.Sequential:
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
