"""Texts packed into rows by the loader: each token has one place, and comes back from it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsa.data.packed_texts import PackedTexts, TextPacking, in_batch, of_batch


def texts(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Ids, all different, and mask of texts of these lengths, padded to the longest."""
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return (100 + torch.arange(mask.numel()).view_as(mask)) * mask, mask


def back(packed: PackedTexts, values: Tensor, mask: Tensor) -> Tensor:
    """`values` (P, S) of slots -> (B, T)."""
    return packed.unpacked(values[..., None].double(), *mask.shape)[..., 0].long()


lengths_of_texts = st.lists(st.integers(1, 40), min_size=1, max_size=70)


@given(lengths_of_texts, st.sampled_from([None, 40, 64]), st.sampled_from([1, 8]))
@settings(max_examples=60)
def test_every_token_has_one_place_and_comes_back_from_it(
    lengths: list[int], max_row_tokens: int | None, pad_rows_to: int
) -> None:
    ids, mask = texts(lengths)
    packed = TextPacking(max_row_tokens, pad_rows_to).packed(ids, mask)
    if packed is None:
        return
    num_rows, num_slots = packed.input_ids.shape
    assert num_slots <= (max_row_tokens or 128)
    assert num_slots % pad_rows_to == 0 or num_slots in (max_row_tokens, max(lengths))
    assert packed.input_ids.numel() <= 0.9 * ids.numel()
    assert torch.equal(back(packed, packed.input_ids, mask), ids)
    positions = torch.arange(mask.shape[1]) * mask
    assert torch.equal(back(packed, packed.positions, mask), positions)
    seen = packed.attention_mask()[:, 0].sum(dim=2)  # (P, S): tokens of its own text
    assert torch.equal(back(packed, seen, mask), mask * mask.sum(dim=1, keepdim=True))
    bounds = packed.bounds.tolist()
    assert len(bounds) == len(lengths) + num_rows + 1
    assert bounds == sorted(bounds)
    slots = packed.texts.flatten().tolist()
    pieces = [slots[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]
    assert all(len(set(piece)) <= 1 for piece in pieces)
    assert sorted(piece[0] for piece in pieces if piece and piece[0] >= 0) == list(
        range(len(lengths))
    )
    assert [token for piece in pieces for token in piece] == slots


def test_gradients_come_back_from_the_tokens_alone() -> None:
    ids, mask = texts([2, 4, 1, 1])
    packed = TextPacking(None).packed(ids, mask)
    assert packed is not None
    hidden = torch.zeros(*packed.input_ids.shape, 3, requires_grad=True)
    weights = torch.arange(4 * 4 * 3).view(4, 4, 3).float()
    (packed.unpacked(hidden, 4, 4) * weights).sum().backward()
    assert hidden.grad is not None
    assert torch.equal(packed.unpacked(hidden.grad, 4, 4), weights * mask[..., None])


def test_what_saves_too_little_is_left_as_it_is() -> None:
    assert TextPacking(None).packed(*texts([9, 9, 8, 9])) is None
    # No row may be longer than the longest text.
    assert TextPacking(9).packed(*texts([9, 2, 2, 2])) is not None
    assert TextPacking(9).packed(*texts([9, 9, 9, 2])) is None
    # 16 slots are a row of 16, but of 32 tokens without an encoder's limit.
    assert TextPacking(None).packed(*texts([9, 7])) is not None
    assert TextPacking(None, 32).packed(*texts([9, 7])) is None


def test_a_row_keeps_to_the_limit_where_a_multiple_would_not() -> None:
    packed = TextPacking(12, 8).packed(*texts([9, 2, 2, 2, 3, 9]))
    assert packed is not None
    assert packed.input_ids.shape == (3, 12)


def test_a_batch_has_them_by_name() -> None:
    packed = TextPacking(None).packed(*texts([9, 2, 2, 2]))
    assert packed is not None
    found = of_batch(in_batch(packed))
    assert found is not None
    assert all(map(torch.equal, found, packed))
    assert set(in_batch(None).values()) == {None}
    assert of_batch(in_batch(None)) is None
    assert of_batch({}) is None
