"""Attention of packed texts by where each begins: no mask, and no products of tokens of two texts.

The kernel is that of `torch.nn.attention.varlen` (Dao 2023, "FlashAttention-2"): on CUDA alone, in
bf16 and fp16, without dropout. It has never run in this project's tests, which have no GPU; a
second implementation, text by text, shows on a CPU that an encoder hands over what it needs.

An encoder of transformers looks its attention up by name, so ours is registered there.

Shapes: P rows, S slots in each, H heads, D features of a head, K texts and row ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsa.errors import first_line

NAME = "mmsa_packed"
_PLAIN = "sdpa"  # transformers' name for PyTorch's attention, which ours stands in for
_ROUNDING = 2e-2  # of bf16, as a share of the largest value (8 bits of mantissa)


class Bounds(NamedTuple):
    """What the attention needs to know of packed texts."""

    begins: Tensor  # (K + 1,) int32, as in PackedTexts
    longest: int  # no text has more slots
    is_causal: bool


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_bounds: Bounds | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """`query`, `key`, `value` (P, H, S, D) -> (P, S, H, D), as transformers calls an attention.

    Without `packed_bounds`, and with dropout, it is PyTorch's own under `attention_mask`.
    """
    if packed_bounds is None or dropout > 0:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        rows: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )[0]
        return rows, None

    def slots(one: Tensor) -> Tensor:  # (P * S, H, D)
        return one.transpose(1, 2).flatten(0, 1)

    computed = by_kernel if query.is_cuda else by_text
    found = computed(slots(query), slots(key), slots(value), packed_bounds, scaling)
    return found.view(query.shape[0], query.shape[2], *found.shape[1:]), None


def by_kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scaling: float | None
) -> Tensor:
    """(P * S, H, D) by the kernel for texts of variable length. `key` may have fewer heads."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (_as_under_autocast(one) for one in (query, key, value))
    found = varlen_attn(
        *(query, key, value, bounds.begins, bounds.begins, bounds.longest, bounds.longest),
        scale=scaling,
        window_size=(-1, 0) if bounds.is_causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)  # a pair only where its sums are wanted too
    return found


def _as_under_autocast(one: Tensor) -> Tensor:
    """`one` in the type in which autocast would give it to PyTorch's attention.

    Autocast knows nothing of the kernel. Rotary positions, and norms of queries and keys, leave
    float32, which the kernel does not take.
    """
    device = one.device.type
    if not torch.is_autocast_enabled(device):
        return one
    return one.to(torch.get_autocast_dtype(device))


def by_text(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scaling: float | None
) -> Tensor:
    """The same, one text after the other, on any device: slow, and waits for the bounds."""
    pieces = []
    for begin, end in pairwise(bounds.begins.tolist()):
        found = F.scaled_dot_product_attention(
            query[begin:end].transpose(0, 1),  # (H, length, D)
            key[begin:end].transpose(0, 1),
            value[begin:end].transpose(0, 1),
            is_causal=bounds.is_causal,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        pieces.append(found.transpose(0, 1))
    return torch.cat(pieces)


def can_use(body: nn.Module) -> bool:
    """Whether `body` looks its attention up by name, and the name is PyTorch's."""
    config: Any = getattr(body, "config", None)
    return getattr(config, "_attn_implementation", None) in (_PLAIN, NAME)


def use(body: Any, *, packed: bool) -> None:
    """Give `body` our attention, or PyTorch's again. Exports do not name it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[_PLAIN])
    body.config._attn_implementation = NAME if packed else _PLAIN


@contextmanager
def used(body: nn.Module) -> Iterator[None]:
    """Inside, `body` has our attention."""
    use(body, packed=True)
    try:
        yield
    finally:
        use(body, packed=False)


def kernel_problem(
    body: nn.Module, device: torch.device, dtype: torch.dtype, *, is_causal: bool
) -> str | None:
    """Why the kernel cannot be used for the attention of `body`; None where it can.

    It is tried on `device` with texts of made-up numbers: outputs and gradients must be those of
    PyTorch's attention text by text, within the rounding of `dtype`. Draws no random number.
    """
    if device.type != "cuda":
        return f"the kernel exists on CUDA alone, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernel computes in bf16 or fp16, and this is {str(dtype).split('.')[-1]}"
    if not torch.backends.cuda.flash_sdp_enabled():
        return "gpu.attention does not name flash"
    try:
        heads, kv_heads, width = _sizes(body)
        largest = _largest_difference(device, dtype, (heads, kv_heads, width), is_causal)
    except Exception as error:  # a kernel that was not built, a width that it does not take
        return f"it fails ({first_line(error, with_type=True)})"
    if not largest <= _ROUNDING:  # also NaN
        return f"its results differ by {largest:.2g} of the largest value"
    return None


def drops_out(body: nn.Module) -> bool:
    """Whether `body` drops attention weights in training, by its configuration."""
    config = getattr(body, "config", None)
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return any((getattr(config, name, None) or 0) > 0 for name in names)


def _sizes(body: nn.Module) -> tuple[int, int, int]:
    """(query heads, key heads, D)."""
    config: Any = body.config
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def _largest_difference(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int], is_causal: bool
) -> float:
    """Between `by_kernel` and `by_text`, in outputs and gradients: a share of the largest value."""
    heads, kv_heads, width = sizes
    begins = [0, 5, 16, 16, 24]  # an empty text too, as at the end of a full row
    bounds = Bounds(torch.tensor(begins, dtype=torch.int32, device=device), 24, is_causal)

    def rows(num_heads: int, start: int) -> Tensor:
        numbers = torch.arange(24 * num_heads * width, device=device) + start
        made = torch.sin(0.7 * numbers.float()).view(24, num_heads, width).to(dtype)
        return made.requires_grad_()

    query, key, value = inputs = (rows(heads, 0), rows(kv_heads, 1), rows(kv_heads, 2))
    found = []
    for computed in (by_kernel, by_text):
        output = computed(query, key, value, bounds, None)
        weights = torch.cos(torch.arange(output.numel(), device=device)).view_as(output)
        gradients = torch.autograd.grad((output * weights).sum(), inputs)
        found.append([output.detach(), *gradients])
    shares = [
        float((one.float() - other.float()).abs().max() / other.float().abs().max())
        for one, other in zip(*found, strict=True)
    ]
    return max(shares)
