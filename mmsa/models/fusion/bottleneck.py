"""The fusion head `bottleneck`: the modalities exchange through a few shared tokens.

Shapes: B batch, N rows of a modality, K shared tokens, D features, W width, C classes.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmsa.models.fusion.attention import AttentionLayer, ExchangingHead, SequenceSettings
from mmsa.models.fusion.head import register_fusion
from mmsa.models.fusion.sequences import FeatureSequence

_INITIAL_DEVIATION = 0.02  # of the shared tokens, as of embeddings in BERT


class BottleneckSettings(SequenceSettings):
    """The settings of layers of attention, and the number of shared tokens."""

    # What one modality wrote into the shared tokens is read by the other in the layer after.
    num_layers: int = Field(2, ge=2, description="layers of attention and feed-forward")
    num_tokens: PositiveInt = Field(4, description="shared tokens")


class BottleneckLayer(nn.Module):
    """Each modality attends to itself and to the shared tokens, which become the mean of both.

    Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion" (MBT), section 3: the shared
    tokens are appended to the rows of each modality, each goes through a transformer layer of its
    own, and both versions of the shared tokens are averaged.
    """

    def __init__(self, settings: SequenceSettings) -> None:
        super().__init__()
        self.text = AttentionLayer(settings, asks_others=False)
        self.image = AttentionLayer(settings, asks_others=False)

    def forward(
        self, text: FeatureSequence, image: FeatureSequence, shared: Tensor
    ) -> tuple[FeatureSequence, FeatureSequence, Tensor]:
        """Sequences of width W and `shared` (B, K, W) -> the same after this layer."""
        text, of_text = _with_shared(self.text, text, shared)
        image, of_image = _with_shared(self.image, image, shared)
        return text, image, (of_text + of_image) / 2


def _with_shared(
    layer: nn.Module, sequence: FeatureSequence, shared: Tensor
) -> tuple[FeatureSequence, Tensor]:
    """One modality's rows with the shared tokens behind them, through its layer."""
    num_shared = shared.shape[1]
    rows = torch.cat([sequence.rows, shared], dim=1)  # (B, N + K, W)
    always = sequence.mask.new_ones(rows.shape[0], num_shared)
    rows = layer(rows, torch.cat([sequence.mask, always], dim=1))
    return sequence._replace(rows=rows[:, :-num_shared]), rows[:, -num_shared:]


@register_fusion("bottleneck")
class BottleneckFusion(ExchangingHead):
    """`num_layers` of exchange; the means of both modalities' rows through a classifier.

    The shared tokens (B, K, W) go through the layers with (B, T, W) and (B, P, W). A modality
    without any row leaves only shared tokens to ask, and its mean is zero.
    """

    Settings = BottleneckSettings

    def build_exchange(self, settings: BottleneckSettings) -> None:
        shared = torch.randn(settings.num_tokens, settings.width)
        self.shared = nn.Parameter(_INITIAL_DEVIATION * shared)
        layers = [BottleneckLayer(settings) for _ in range(settings.num_layers)]
        self.layers = nn.ModuleList(layers)

    def exchange(
        self, text: FeatureSequence, image: FeatureSequence
    ) -> tuple[FeatureSequence, FeatureSequence]:
        # In the type of the rows, which under autocast is not that of the parameter.
        shared = self.shared.to(text.rows.dtype).expand(text.rows.shape[0], -1, -1)
        for layer in self.layers:
            text, image, shared = layer(text, image, shared)
        return text, image
