"""Batch normalisation done by the convolution before it: the same function for less work.

In evaluation a BatchNorm is a fixed scale and shift of each channel (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
equation 14), so the convolution whose output it reads can have both in its weights. Results differ
by rounding. For a model that will neither be trained nor saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ROUNDING = 1e-3  # of the largest output: far above float32's, far below a layer that is missed


class _Pair(NamedTuple):
    """A convolution whose output a BatchNorm alone reads."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


@torch.no_grad()
def fold_batch_norms(model: nn.Module, output: Callable[[], Tensor]) -> int:
    """Fold what can be folded of `model`, which is in evaluation; returns how many layers.

    `output()` is a forward pass of the model with any input. It is called before and after: where
    the results differ by more than rounding (the output of a convolution is also read elsewhere),
    the model is left as it was.
    """
    with _watched(model) as pairs:
        before = output()
    undo = [_fold(model, pair) for pair in pairs]
    if pairs and not _equal(output(), before):
        for step in reversed(undo):
            step()
        return 0
    return len(pairs)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Pair]]:
    """The pairs that forward passes inside show; complete when the context ends."""
    found: list[_Pair] = []
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors too: ids of freed ones come again

    def after_convolution(module: Any, _: Any, result: Tensor) -> None:
        calls[module] += 1
        made[id(result)] = (module, result)

    def before_norm(module: Any, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if id(inputs[0]) in made:
            found.append(_Pair(made[id(inputs[0])][0], module))

    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame":  # timm's, padded
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d) and _what_is_left(module) is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found[:] = [pair for pair in found if calls[pair.convolution] == calls[pair.norm] == 1]


def _what_is_left(norm: Any) -> nn.Module | None:
    """What a folded layer still does; None where it is not known or nothing is fixed."""
    if norm.training or norm.running_mean is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's, with the activation in it
        return nn.Sequential(norm.drop, norm.act)
    return None


def _fold(model: nn.Module, pair: _Pair) -> Callable[[], None]:
    """Fold one pair; returns what undoes it."""
    convolution, norm = pair
    left = _what_is_left(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert left is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # (C,)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight + norm.bias
    old_weight, old_bias = convolution.weight, convolution.bias
    if old_bias is not None:
        shift = shift + old_bias.double() * scale
    weight = old_weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(weight.to(old_weight), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(old_weight), requires_grad=False)
    name = next(name for name, module in model.named_modules() if module is norm)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, left)

    def undo() -> None:
        convolution.weight, convolution.bias = old_weight, old_bias
        setattr(model.get_submodule(parent), own, norm)

    return undo


def _equal(found: Tensor, expected: Tensor) -> bool:
    difference = (found - expected).abs().max()
    return bool(difference <= _ROUNDING * expected.abs().max().clamp(min=1))
