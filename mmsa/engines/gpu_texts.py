"""How the texts of a batch lie in memory, and which attention packed ones get: by `gpu.packing`.

    auto   packed; variable-length attention where its kernel agrees with a mask on this GPU
    mask   packed, under a mask over pairs of tokens
    off    padded

On a CPU texts are packed under a mask, whatever the setting: one setting for a cluster's GPUs must
not change what a CPU computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmsa.config import GpuConfig
from mmsa.data.packed_texts import TextLayout
from mmsa.engines.hardware import device_type
from mmsa.models import packed_attention
from mmsa.models.model import SentimentModel


def text_layout(model: SentimentModel, gpu: GpuConfig, device: str | None = None) -> TextLayout:
    """The layout for `model`; `device` is the type of the one that computes, by default that of
    this process."""
    if (device or device_type()) != "cuda":
        return TextLayout(1, model.packing())
    packing = None if gpu.packing == "off" else model.packing(gpu.pad_tokens_to)
    return TextLayout(gpu.pad_tokens_to, packing)


@dataclass(frozen=True)
class PackedAttention:
    """What was chosen: `words` for the log, and whether something that was wanted failed."""

    words: str
    fell_back: bool = False


def choose_packed_attention(
    model: SentimentModel, gpu: GpuConfig, device: torch.device, dtype: torch.dtype
) -> PackedAttention:
    """Give the text encoder of `model` the attention of `gpu.packing`, before an engine wraps it.

    `dtype` is what its products are computed in. No collective: ranks may choose differently.
    """
    encoder = model.text_encoder
    if encoder is None:
        return PackedAttention("not read")
    if encoder.packing() is None:
        return PackedAttention("padded, because this encoder does not take packed ones")
    if device.type != "cuda":
        return PackedAttention("packed, under a mask")
    if gpu.packing == "off":
        return PackedAttention("padded (gpu.packing=off)")
    if gpu.packing == "mask":
        return PackedAttention("packed, under a mask (gpu.packing=mask)")
    if not encoder.takes_bounds():
        return PackedAttention(
            "packed, under a mask, because this encoder has an attention of its own"
        )
    problem = packed_attention.kernel_problem(encoder.body, device, dtype, is_causal=encoder.causal)
    if problem is not None:
        return PackedAttention(
            "packed, under a mask; variable-length attention (gpu.packing=auto) cannot "
            f"be used: {problem}",
            fell_back=dtype != torch.float32,  # which has no such kernel anywhere
        )
    encoder.use_bounds()
    words = "packed, with variable-length attention"
    if packed_attention.drops_out(encoder.body):
        words += " in validation; in training under a mask, because the kernel has no dropout"
    return PackedAttention(words)
