"""Texts of one micro-batch packed one after another, so that no padding is computed.

16 tweets of MVSA-Single have 32 tokens on average and are padded to 59. Packed, a few rows contain
several texts each; a token attends only to its own text, and its position counts from that text's
start (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination").

Shapes: B texts, T tokens of the longest, P packed rows, S tokens in each, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

_ROW_TOKENS = 128  # longest packed row: attention grows with its square (docs/benchmarks.md)
_WORTH = 0.9  # packing must not leave more than this share of the padded tokens


@dataclass(frozen=True)
class PackedTexts:
    """The input of an encoder in place of padded texts, and the way back."""

    input_ids: Tensor  # (P, S) int64
    position_ids: Tensor  # (P, S) int64
    attention_mask: Tensor  # (P, 1, S, S) bool: which tokens each token attends to
    _real: Tensor  # (B, T) bool
    _slots: Tensor  # (N,) where each of the N real tokens is, in P * S

    def unpacked(self, hidden: Tensor) -> Tensor:
        """`hidden` (P, S, D) -> rows of the padded texts (B, T, D), zeros at padding."""
        apart = hidden.new_zeros(*self._real.shape, hidden.shape[-1])
        apart[self._real] = hidden.flatten(0, 1)[self._slots]
        return apart


def pack_texts(
    input_ids: Tensor, attention_mask: Tensor, *, first_position: int, max_positions: int | None
) -> PackedTexts | None:
    """Pack texts (B, T), or None where that would save less than a tenth of the tokens.

    `attention_mask` (B, T) is 1 at tokens. `first_position` is the position of a text's first
    token. A packed row is no longer than `max_positions`. The number of rows depends on
    the lengths, which are read from the tensors: on a GPU this would wait for the device.
    """
    real = attention_mask.bool()
    lengths = real.sum(dim=1).tolist()
    capacity = max(min(_ROW_TOKENS, max_positions or _ROW_TOKENS), max(lengths, default=0))
    rows, starts, num_rows, longest = _laid_out(lengths, capacity)
    if num_rows * longest > _WORTH * real.numel():
        return None
    place = attention_mask.cumsum(dim=1) - 1  # (B, T) of each token in its text
    first_slot = longest * torch.tensor(rows) + torch.tensor(starts)  # (B,)
    slots = (first_slot[:, None] + place)[real]

    def packed(values: Tensor, empty: int) -> Tensor:
        row = torch.full((num_rows * longest,), empty, dtype=torch.int64)
        row[slots] = values.expand(real.shape)[real]
        return row.view(num_rows, longest)

    text = packed(torch.arange(len(lengths))[:, None], -1)
    return PackedTexts(
        input_ids=packed(input_ids, 0),
        position_ids=packed(place + first_position, first_position),
        # Empty slots attend to each other: an empty row would have no softmax.
        attention_mask=(text[:, :, None] == text[:, None, :])[:, None],
        _real=real,
        _slots=slots,
    )


def _laid_out(lengths: list[int], capacity: int) -> tuple[list[int], list[int], int, int]:
    """(row of each text, its start there, number of rows, tokens of the fullest row).

    Longest first into the emptiest row (Graham 1969), with as few rows as possible.
    """
    by_length = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    for num_rows in count(max(1, -(-sum(lengths) // capacity))):
        filled = [0] * num_rows
        rows, starts = [0] * len(lengths), [0] * len(lengths)
        for text in by_length:
            row = min(range(num_rows), key=filled.__getitem__)
            rows[text], starts[text] = row, filled[row]
            filled[row] += lengths[text]
        if max(filled) <= capacity:
            return rows, starts, num_rows, max(filled)
    raise AssertionError("a text longer than the capacity")
