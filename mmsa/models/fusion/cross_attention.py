"""The fusion head `cross_attention`: each modality's rows attend to those of the other.

Shapes: B batch, T tokens, P patches or positions, D features, W width, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmsa.models.fusion.attention import (
    AttentionLayer,
    MeanOfRows,
    SequenceSettings,
    joined,
    projected,
)
from mmsa.models.fusion.head import FusionHead, mlp, register_fusion
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
class CrossAttentionFusion(FusionHead):
    """`num_layers` of cross-attention; the means of both modalities' rows through a classifier.

    D_text -> W and D_image -> W by a linear layer; (B, T, W) and (B, P, W) through the layers; the
    mean over tokens and the mean over patches, concatenated (B, 2 W), to (B, C). A modality without
    any row takes no part: nothing is found there, and its mean is zero.
    """

    Settings = SequenceSettings
    takes = "sequences"

    def __init__(
        self, settings: SequenceSettings, text_width: int, image_width: int, num_outputs: int
    ) -> None:
        super().__init__()
        width = settings.width
        self.text_projection = nn.Linear(text_width, width)
        self.image_projection = nn.Linear(image_width, width)
        layers = [CrossAttentionLayer(settings) for _ in range(settings.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.text_mean, self.image_mean = MeanOfRows(width), MeanOfRows(width)
        self.classifier = mlp(2 * width, settings.classifier, num_outputs)

    def forward(self, text_features: FeatureSequence, image_features: FeatureSequence) -> Tensor:
        text = projected(self.text_projection, text_features)
        image = projected(self.image_projection, image_features)
        for layer in self.layers:
            text, image = layer(text, image)
        logits: Tensor = self.classifier(joined(self.text_mean(text), self.image_mean(image)))
        return logits
