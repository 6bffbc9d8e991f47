"""What the machine can compute on, known before anything is created on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsa.errors import UserError

if TYPE_CHECKING:
    import torch


def device_type() -> str:
    """cuda or cpu: what a run will compute on, known before its Accelerator exists."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_named(name: str | None) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1; None for what this machine has.

    Raises `UserError` where it cannot be used.
    """
    import torch

    if name is None:
        return torch.device(device_type())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"the device {name!r} cannot be used ({said:.120}); use cpu, cuda or cuda:N"
        ) from None
    return device


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
