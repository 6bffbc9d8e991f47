"""Depthwise convolutions under bf16 on a CPU.

oneDNN (torch 2.15) computes the backward pass of many depthwise convolutions several times slower
in bf16 than in float32, also on a CPU with bf16 instructions: 3.8 times over those of
EfficientNet-Lite0 (benchmarks/depthwise.py). On a CPU they are therefore left out of autocast.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


def leave_out_of_cpu_autocast(body: nn.Module) -> None:
    """Have the depthwise convolutions of `body` computed in float32 where autocast on a CPU would
    compute them in another type, which they still return.

    In place; names and values of tensors stay. Elsewhere (a GPU, float32) nothing changes.
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            # Not a module around it, which would rename its tensors, and no hook, because
            # autocast is left inside the call.
            convolution: nn.Module = module
            convolution.forward = partial(_in_float32, module)


def _in_float32(module: nn.Conv2d, images: Tensor) -> Tensor:
    """The class's own forward of `module`; (B, C, H, W) in, (B, C, H', W') out."""
    forward = type(module).forward
    # Parameters in bf16: DeepSpeed with `train.communication=bf16` gathers them so.
    in_float32 = module.weight.dtype == torch.float32
    if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not in_float32:
        return forward(module, images)
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        return forward(module, images.float()).to(dtype)
