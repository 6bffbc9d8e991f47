"""Features of every token, patch or position: what heads that see more than one row are given.

Shapes: B batch, N tokens of the longest text or positions of an image, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa.errors import UserError, first_line


class FeatureSequence(NamedTuple):
    """What an encoder gives to a head that takes sequences: rows in order, and which of them exist.

    A row whose mask is False is padding. Its numbers are finite and mean nothing. An input may have
    no row at all: a head must treat it as a modality that is missing.
    """

    rows: Tensor  # (B, N, D)
    mask: Tensor  # (B, N) bool

    def where_present(self, present: Tensor, otherwise: Tensor) -> FeatureSequence:
        """The same; where `present` (B,) is False, the input's only row is `otherwise` (D,)."""
        only = torch.zeros_like(self.mask)
        only[:, 0] = True
        rows = torch.where(present[:, None, None], self.rows, otherwise.to(self.rows.dtype))
        # Not by `torch.where`: onnxruntime has none for booleans.
        has = present[:, None]
        return FeatureSequence(rows, (self.mask & has) | (only & ~has))


Features = Tensor | FeatureSequence  # one row per input (B, D), or a sequence


def one_row(features: Features) -> Tensor:
    """Features (B, D); of a sequence the mean of its rows, as the heads that take them end."""
    if isinstance(features, FeatureSequence):
        return masked_mean(features.rows, features.mask)
    return features


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """The mean of `rows` (B, N, D) over the rows whose mask (B, N) is 1: (B, D), float32.

    An input without any row gets zeros. Summed in float32: long sums in bfloat16 lose digits.
    """
    counted = mask.unsqueeze(-1).float()  # (B, N, 1)
    return (rows.float() * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def position_rows(found: Tensor) -> Tensor:
    """Rows (B, P, D) as they are; a feature map (B, D, height, width) as one row per position."""
    return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found


def no_sequence(named: str) -> str:
    """The message for a head that takes sequences of an encoder without any."""
    return (
        f"{named} has one row of features per image, and the fusion head takes one per patch or "
        "position; use a head that takes one row (concat, attention, gated, ...) or another encoder"
    )


def rows_of_trial(encoder: nn.Module, named: str, inputs: Sequence[Tensor]) -> Tensor:
    """The rows (B, N, D) of `inputs`. Raises `UserError` where the body gives something else."""
    try:
        found: Features = encoder(*inputs)
    except Exception as error:  # the code of a body may raise anything
        raise UserError(f"{no_sequence(named)} ({first_line(error, with_type=True)})") from None
    assert isinstance(found, FeatureSequence)
    if found.rows.dim() != 3 or len(found.rows) != len(inputs[0]):
        raise UserError(f"{no_sequence(named)} (it gives {tuple(found.rows.shape)} for one input)")
    return found.rows
