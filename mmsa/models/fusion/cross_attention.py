"""The fusion head `cross_attention`: each modality's rows attend to those of the other.

Shapes: B batch, T tokens, P patches or positions, D features, W width, C classes.
"""

from __future__ import annotations

from torch import nn

from mmsa.models.fusion.attention import AttentionLayer, ExchangingHead, SequenceSettings
from mmsa.models.fusion.head import register_fusion
from mmsa.models.fusion.sequences import FeatureSequence


class CrossAttentionLayer(nn.Module):
    """Tokens ask patches and patches ask tokens, both as they were before this layer.

    The co-attention of ViLBERT (Lu et al. 2019, figure 2b), which is the cross-attention of
    LXMERT's cross-modality layers (Tan and Bansal 2019, section 2.2), followed by a feed-forward
    network. Without further self-attention: the encoders have that.
    """

    def __init__(self, settings: SequenceSettings) -> None:
        super().__init__()
        self.text = AttentionLayer(settings, asks_others=True)
        self.image = AttentionLayer(settings, asks_others=True)

    def forward(
        self, text: FeatureSequence, image: FeatureSequence
    ) -> tuple[FeatureSequence, FeatureSequence]:
        """Sequences of width W -> the same, each with what it took from the other."""
        return (
            text._replace(rows=self.text(text.rows, image.mask, image.rows)),
            image._replace(rows=self.image(image.rows, text.mask, text.rows)),
        )


@register_fusion("cross_attention")
class CrossAttentionFusion(ExchangingHead):
    """`num_layers` of cross-attention; the means of both modalities' rows through a classifier.

    A modality without any row takes no part: nothing is found there, and its mean is zero.
    """

    Settings = SequenceSettings

    def build_exchange(self, settings: SequenceSettings) -> None:
        layers = [CrossAttentionLayer(settings) for _ in range(settings.num_layers)]
        self.layers = nn.ModuleList(layers)

    def exchange(
        self, text: FeatureSequence, image: FeatureSequence
    ) -> tuple[FeatureSequence, FeatureSequence]:
        for layer in self.layers:
            text, image = layer(text, image)
        return text, image
