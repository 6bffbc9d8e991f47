"""What the machine can compute on, known before anything is created on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_type() -> str:
    """cuda or cpu: what a run will compute on, known before its Accelerator exists."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def own_gpus(device: torch.device) -> list[int]:
    """The GPU of this rank, as `torch.random.fork_rng` takes it; none on a CPU.

    Without it the generators of all GPUs of the machine are kept, with a warning.
    """
    return [] if device.type == "cpu" else [device.index or 0]


def has_bf16() -> bool:
    """Whether the device multiplies bfloat16 natively, not by emulation."""
    import torch

    if device_type() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private, but the older torch versions that we support have no public name for it.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
