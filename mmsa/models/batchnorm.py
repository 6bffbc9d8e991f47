"""BatchNorm running statistics across ranks.

In training each rank normalises by its own micro-batch and keeps its own running statistics. For
validation and exports copies are averaged over the ranks: the live model does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running buffers of all BatchNorm layers of `model`, by their state-dict names."""
    return {
        f"{name}.{buffer_name}": buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer_name, buffer in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def averaged_statistics(
    model: nn.Module, accelerator: Accelerator, own: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The mean of the ranks' running statistics, in copies. A collective: all ranks call it.

    `own` replaces this rank's statistics of the same names, on every rank.
    """
    averaged = {}
    for name, buffer in {**running_statistics(model), **(own or {})}.items():
        if buffer.is_floating_point():
            total = accelerator.reduce(buffer.detach().clone(), reduction="sum")
            averaged[name] = total / accelerator.num_processes
        else:
            averaged[name] = buffer.detach().clone()  # batches tracked; unused with a set momentum
    return averaged


@contextmanager
def with_statistics(model: nn.Module, statistics: dict[str, Tensor]) -> Iterator[None]:
    """Inside, `model` has the given running statistics; afterwards its own again."""
    live = running_statistics(model)
    own = {name: buffer.detach().clone() for name, buffer in live.items()}
    try:
        _copy_into(live, statistics)
        yield
    finally:
        _copy_into(live, own)


@contextmanager
def frozen_statistics(model: nn.Module, active: bool) -> Iterator[None]:
    """Inside, when `active`, BatchNorm layers normalise by their running statistics.

    For a micro-batch with rows of weight 0 or fewer than two rows, which must not reach a
    BatchNorm in training mode.
    """
    layers = []
    if active:  # not otherwise: this is entered at each micro-step
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


@torch.no_grad()
def _copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, buffer in live.items():
        buffer.copy_(values[name])
