"""What the machine can do, asked before anything is made on it."""

from __future__ import annotations


def device_type() -> str:
    """cuda or cpu: what a run will compute on, known before its Accelerator is made."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16() -> bool:
    """Whether the device multiplies bfloat16 by instructions of its own, not by emulation."""
    import torch

    if device_type() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private, and there is no other word for it in the older torch versions that we admit.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
