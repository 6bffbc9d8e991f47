"""What a step minimises: the loss of the pair's label, and those of the auxiliary heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsa.config import ModelConfig
from mmsa.data.stream import Batch
from mmsa.models.auxiliary import auxiliary_loss, auxiliary_weights
from mmsa.models.losses import build_loss


class Objective:
    """The loss of each sample of a micro-batch, by the settings of `model`.

    `has_auxiliary` says whether the model must return the logits of its auxiliary heads too.
    """

    def __init__(
        self, config: ModelConfig, class_counts: Sequence[int], device: torch.device
    ) -> None:
        """`class_counts` (C) are those of the training split."""
        self._loss = build_loss(config.loss)
        self._label_smoothing = config.label_smoothing
        self._auxiliary = auxiliary_weights(config.auxiliary)
        weights = self._loss.class_weights(class_counts)
        if config.class_weights == "balanced":
            weights = balanced_weights(class_counts)
        self.class_weights = None if weights is None else weights.to(device)  # (C,)

    @property
    def has_auxiliary(self) -> bool:
        return bool(self._auxiliary)

    def per_sample(self, output: Any, batch: Batch) -> Tensor:
        """The losses (B,) float32, weighted but not averaged: see `losses.Loss`.

        `output` is what the model returned: logits (B, C), with auxiliary heads in a pair with
        theirs by modality. The loss of a head has the class weights and the label smoothing of the
        pair's.
        """
        logits, of_heads = output if self.has_auxiliary else (output, {})
        more: dict[str, Any] = {
            "class_weights": self.class_weights,
            "label_smoothing": self._label_smoothing,
        }
        targets = batch["labels"] if batch["targets"] is None else batch["targets"]
        losses = self._loss.per_sample(logits.float(), targets, **more)
        if not self.has_auxiliary:
            return losses
        return losses + auxiliary_loss(
            of_heads, batch["modality_labels"], loss=self._loss, weights=self._auxiliary, **more
        )


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Weights (C,) inverse to the classes' frequency, whose mean over the training split is 1."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    num_present = (counts > 0).sum()
    return (counts.sum() / (num_present * counts.clamp(min=1))).float()
