"""Texts of one micro-batch packed one after another, so that no padding is computed.

16 tweets of MVSA-Single have 32 tokens on average and are padded to 59. Packed, a few rows contain
several texts each; a token attends only to its own text, and its position counts from that text's
start (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination").

The loader packs, because it knows the lengths: a GPU would have to be asked for them, and the host
would wait for the answer.

Shapes: B texts, T tokens of the longest, P packed rows, S slots in each, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmsa.data.text import TextTokenizer

_ROW_TOKENS = 128  # longest packed row: attention grows with its square (docs/benchmarks.md)
_WORTH = 0.9  # packing must not leave more than this share of the padded tokens


class PackedTexts(NamedTuple):
    """The input of an encoder in place of padded texts, and the way back.

    Its methods do not wait for a device.
    """

    input_ids: Tensor  # (P, S) int64; 0 in empty slots
    positions: Tensor  # (P, S) int64: of each token in its text, from 0
    texts: Tensor  # (P, S) int64: the text (0 to B - 1) of each slot; -1 in empty ones
    # (B + P + 1,) int32: where each text begins among the P * S slots, in their order, then the
    # empty slots at a row's end (maybe none); the last number is P * S.
    bounds: Tensor

    def to(self, device: torch.device) -> PackedTexts:
        return PackedTexts(*(tensor.to(device) for tensor in self))

    def attention_mask(self) -> Tensor:
        """Which slots each slot attends to, (P, 1, S, S) bool: those of its own text.

        Empty slots attend to each other: an empty row would have no softmax.
        """
        return (self.texts[:, :, None] == self.texts[:, None, :])[:, None]

    def unpacked(self, hidden: Tensor, num_texts: int, num_tokens: int) -> Tensor:
        """`hidden` (P, S, D) -> rows of the padded texts (B, T, D), zeros at padding."""
        texts, behind = self.texts.flatten(), num_texts * num_tokens
        places = torch.where(texts < 0, behind, texts * num_tokens + self.positions.flatten())
        # Empty slots go behind the last place. What is copied comes back as it was in the backward
        # pass: no sums, and no list of places that a GPU would have to count first.
        apart = hidden.new_zeros(behind + 1, hidden.shape[-1])
        apart.index_copy_(0, places, hidden.flatten(0, 1))
        return apart[:behind].view(num_texts, num_tokens, hidden.shape[-1])


# The names of a batch's tensors, in the order of PackedTexts.
_BATCH_NAMES = ("packed_ids", "packed_positions", "packed_texts", "packed_bounds")


def in_batch(packed: PackedTexts | None) -> dict[str, Tensor | None]:
    """The tensors of `packed` by their names in a batch; None for texts that are not packed."""
    return dict(zip(_BATCH_NAMES, packed or (None,) * len(_BATCH_NAMES), strict=True))


def of_batch(batch: Mapping[str, Any]) -> PackedTexts | None:
    """The packed texts of a batch; None where they are not packed."""
    if batch.get(_BATCH_NAMES[0]) is None:
        return None
    return PackedTexts(*(batch[name] for name in _BATCH_NAMES))


@dataclass(frozen=True)
class TextPacking:
    """How texts are packed for an encoder that takes packed ones.

    A row has no more slots than `max_row_tokens`, the encoder's longest text (None: no limit), and
    a multiple of `pad_rows_to` where that fits. The layout depends on lengths alone.
    """

    max_row_tokens: int | None
    pad_rows_to: int = 1

    def packed(self, input_ids: Tensor, attention_mask: Tensor) -> PackedTexts | None:
        """Pack texts (B, T) on the CPU; None where that would save less than a tenth of the tokens.

        `attention_mask` (B, T) is 1 at tokens; padding is on the right.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        longest = max(lengths, default=0)
        capacity = max(min(_ROW_TOKENS, self.max_row_tokens or _ROW_TOKENS), longest)
        rows, starts, num_rows, fullest = _laid_out(lengths, capacity)
        num_slots = min(-(-fullest // self.pad_rows_to) * self.pad_rows_to, capacity)
        if num_rows * num_slots > _WORTH * attention_mask.numel():
            return None
        return _filled(input_ids, attention_mask, rows, starts, (num_rows, num_slots))


@dataclass(frozen=True)
class TextLayout:
    """How the token ids of a batch lie in memory: padded, and also packed where `packing` says how.

    Loader workers are given it: it must not need the model.
    """

    pad_tokens_to: int = 1
    packing: TextPacking | None = None

    def tokens_of(
        self, tokenizer: TextTokenizer, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor, PackedTexts | None]:
        """(ids (B, T), mask (B, T), packed) of texts; T as in `TextTokenizer`."""
        input_ids, attention_mask = tokenizer(texts, pad_to=self.pad_tokens_to)
        if self.packing is None:
            return input_ids, attention_mask, None
        return input_ids, attention_mask, self.packing.packed(input_ids, attention_mask)


def _filled(
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: list[int],
    starts: list[int],
    shape: tuple[int, int],
) -> PackedTexts:
    """Texts (B, T), each in its row from its start on; `shape` is (P, S)."""
    num_rows, num_slots = shape
    real = attention_mask.bool()
    first_slot = torch.tensor(rows) * num_slots + torch.tensor(starts)  # (B,)
    position = attention_mask.cumsum(dim=1) - 1  # (B, T) of each token in its text
    slots = (first_slot[:, None] + position)[real]

    def packed(values: Tensor, empty: int) -> Tensor:
        row = torch.full((num_rows * num_slots,), empty, dtype=torch.int64)
        row[slots] = values.expand(real.shape)[real]
        return row.view(num_rows, num_slots)

    texts = packed(torch.arange(len(rows))[:, None], -1)
    row_ends = torch.arange(1, num_rows + 1) * num_slots
    empty_from = row_ends - (texts < 0).sum(dim=1)
    begins = torch.cat([first_slot, empty_from]).sort().values
    return PackedTexts(
        input_ids=packed(input_ids, 0),
        positions=packed(position, 0),
        texts=texts,
        bounds=torch.cat([begins, row_ends[-1:]]).to(torch.int32),
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
