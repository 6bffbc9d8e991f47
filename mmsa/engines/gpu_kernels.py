"""How a GPU computes: float32, convolutions and attention. Chosen once, before the first kernel.

PyTorch's own choice for float32 is two: convolutions in TF32 (10 bits of mantissa instead of 23),
matrix products not. Here it is one, told by the precision:

    no     strict float32 everywhere
    tf32   TF32 everywhere
    bf16, fp16   what autocast leaves in float32 is strict

These switches belong to the process. On a CPU none of them changes a result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmsa.config import GpuConfig
from mmsa.engines.hardware import device_type
from mmsa.models.packed_attention import NAME as PACKED_ATTENTION

TF32 = "tf32"

# Of `strict_float32`: the switches of the process, which all its threads share.
_lock = threading.Lock()
_inside = 0
_before = (False, True)


def choose_kernels(precision: str, gpu: GpuConfig, *, training: bool) -> None:
    """Set the switches of this process for a precision of `engine.precision_of_launch`.

    cuDNN tries its convolutions only in training, and not with deterministic algorithms: which one
    is fastest can differ between two runs, and an evaluation must give the same bytes.
    """
    _set_tf32(precision == TF32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = training and gpu.cudnn_benchmark and not deterministic
    if device_type() == "cuda":  # some of the switches hold for a CPU as well
        allow_attention(gpu.attention)


def _set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def computes_in_tf32() -> bool:
    """Whether float32 is computed as TF32 on a GPU, convolutions and matrix products alike."""
    return bool(torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32)


@contextmanager
def strict_float32() -> Iterator[None]:
    """Inside, a GPU computes float32 as float32; the last thread to leave puts the switches back.

    For code that runs in a process that is not ours.
    """
    global _before, _inside
    with _lock:
        if not _inside:
            _before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
            _set_tf32(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = _before


def dtype_of_products(precision: str) -> torch.dtype:
    """What matrix products are computed in under a precision of `engine.precision`."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return dtypes.get(precision, torch.float32)


def kernel_facts() -> dict[str, Any]:
    """The switches as they are, for the facts of a launch on a GPU."""
    return {
        "tf32_matmul": bool(torch.backends.cuda.matmul.allow_tf32),
        "tf32_convolution": bool(torch.backends.cudnn.allow_tf32),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
    }


def allow_attention(names: Sequence[str]) -> None:
    """Which backends `scaled_dot_product_attention` may choose from on a GPU.

    cuDNN's is off unless it is named: it builds a plan for each new (batch, length), which takes
    tenths of a second where a mask is given, and the texts of each batch have another length.
    """
    torch.backends.cuda.enable_flash_sdp("flash" in names)
    torch.backends.cuda.enable_mem_efficient_sdp("efficient" in names)
    torch.backends.cuda.enable_cudnn_sdp("cudnn" in names)
    torch.backends.cuda.enable_math_sdp("math" in names)


def attention_in_words(body: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """The attention that `body`, a text encoder of transformers, will use for a padded batch.

    PyTorch chooses the backend from type, shape and mask, so it is asked with those of the encoder:
    one text of 32 tokens under a mask over pairs of tokens.
    """
    config: Any = getattr(body, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if kind not in ("sdpa", PACKED_ATTENTION):
        return "the encoder's own" if kind is None else f"the encoder's own ({kind})"
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return "PyTorch's, backend unknown"
    rows = torch.zeros(1, heads, 32, width // heads, device=device, dtype=dtype)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool, device=device)
    try:
        chosen = torch._fused_sdp_choice(rows, rows, rows, mask)
    except RuntimeError as error:  # no backend that may be used takes this
        return f"none of gpu.attention takes it ({str(error).splitlines()[0]})"
    backend = torch.nn.attention.SDPBackend(chosen)
    return f"PyTorch's, {backend.name.lower()} for masked texts in {str(dtype).split('.')[-1]}"
