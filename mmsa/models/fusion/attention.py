"""Attention between sequences: what the heads that take sequences are made of.

Shapes: B batch, N rows that ask, M rows that are asked, H attention heads, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmsa.models.fusion.head import FusionHead, FusionSettings, MlpSettings, mlp
from mmsa.models.fusion.sequences import FeatureSequence, masked_mean


class SequenceSettings(FusionSettings):
    """Layers of attention in one common width, then a classifier on both modalities' means."""

    width: PositiveInt = Field(256, description="common width of all rows")
    num_layers: PositiveInt = Field(1, description="layers of attention and feed-forward")
    num_heads: PositiveInt = 4
    feedforward: PositiveInt = Field(512, description="hidden width of the feed-forward networks")
    hidden: list[PositiveInt] = Field([], description="widths of the classifier")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each part of a layer, in classifier")

    @model_validator(mode="after")
    def _heads_divide(self) -> SequenceSettings:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by num_heads {self.num_heads}")
        return self

    @property
    def classifier(self) -> MlpSettings:
        return MlpSettings(hidden=self.hidden, dropout=self.dropout)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Of linear layers that are called, because ZeRO-3 gathers a layer's weights when it is called;
    `nn.MultiheadAttention` reads those of its output layer without, and gives NaN where a sample
    has no row to ask.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, asking: Tensor, asked: Tensor, mask: Tensor) -> Tensor:
        """`asking` (B, N, W), `asked` (B, M, W) with `mask` (B, M) bool -> (B, N, W).

        Rows whose mask is False are not asked. A sample without any row to ask gets zeros.
        """
        found_any = mask.any(dim=1)
        # A softmax over nothing is NaN, in the gradient too; what is found there is dropped below.
        allowed = (mask | ~found_any[:, None])[:, None, None, :]  # (B, 1, 1, M)
        found = functional.scaled_dot_product_attention(
            self._apart(self.query(asking)),
            self._apart(self.key(asked)),
            self._apart(self.value(asked)),
            attn_mask=allowed.expand(-1, -1, asking.shape[1], -1),
        )  # (B, H, N, W / H)
        together: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return together * found_any[:, None, None]

    def _apart(self, rows: Tensor) -> Tensor:
        """(B, N, W) -> (B, H, N, W / H)."""
        return rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class AttentionLayer(nn.Module):
    """Attention, then a feed-forward network; norms come first and inputs are added (pre-norm).

    Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1 (b).
    """

    def __init__(self, settings: SequenceSettings, *, asks_others: bool) -> None:
        """`asks_others`: rows of another sequence are asked, not the sequence's own."""
        super().__init__()
        width = settings.width
        self.norm = nn.LayerNorm(width)
        self.norm_others = nn.LayerNorm(width) if asks_others else None
        self.attention = Attention(width, settings.num_heads)
        self.dropout = nn.Dropout(settings.dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, settings.feedforward),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.feedforward, width),
            nn.Dropout(settings.dropout),
        )

    def forward(self, rows: Tensor, mask: Tensor, others: Tensor | None = None) -> Tensor:
        """`rows` (B, N, W) -> (B, N, W); `mask` (B, M) is that of the rows that are asked."""
        asking = self.norm(rows)
        asked = asking
        if self.norm_others is not None:
            asked = self.norm_others(others)
        rows = rows + self.dropout(self.attention(asking, asked, mask))
        added: Tensor = self.feedforward(rows)
        return rows + added


class MeanOfRows(nn.Module):
    """A norm, then the mean over the rows that exist: (B, N, W) -> (B, W), float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, sequence: FeatureSequence) -> Tensor:
        """Zeros where a sample has no row."""
        return masked_mean(self.norm(sequence.rows), sequence.mask)


class ExchangingHead(FusionHead):
    """A head in which the rows of both modalities exchange; their means go through a classifier.

    D_text -> W and D_image -> W by a linear layer; (B, N, W) of both through the `exchange` of a
    subclass; the mean over tokens and the mean over patches, concatenated (B, 2 W), to (B, C).
    """

    takes = "sequences"

    def __init__(self, settings: Any, text_width: int, image_width: int, num_outputs: int) -> None:
        """`settings` are a `SequenceSettings`."""
        super().__init__()
        width = settings.width
        self.text_projection = nn.Linear(text_width, width)
        self.image_projection = nn.Linear(image_width, width)
        self.build_exchange(settings)
        self.text_mean, self.image_mean = MeanOfRows(width), MeanOfRows(width)
        self.classifier = mlp(2 * width, settings.classifier, num_outputs)

    def build_exchange(self, settings: Any) -> None:
        """Make the modules of `exchange`, between projections and classifier: they draw there."""
        raise NotImplementedError

    def exchange(
        self, text: FeatureSequence, image: FeatureSequence
    ) -> tuple[FeatureSequence, FeatureSequence]:
        """Sequences of width W -> the same, each with what it has of the other."""
        raise NotImplementedError

    def forward(self, text_features: FeatureSequence, image_features: FeatureSequence) -> Tensor:
        text, image = self.exchange(
            text_features._replace(rows=self.text_projection(text_features.rows)),
            image_features._replace(rows=self.image_projection(image_features.rows)),
        )
        means = torch.cat([self.text_mean(text), self.image_mean(image)], dim=1)  # (B, 2 W)
        logits: Tensor = self.classifier(means)
        return logits
