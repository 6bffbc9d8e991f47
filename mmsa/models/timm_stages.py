"""The stages of a timm model, as timm itself divides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mmsa.models.blank import is_blank
from mmsa.models.eval_mode import eval_mode

Stage = list[nn.Module]


def stages_of(model: Any) -> list[Stage]:
    """The modules of each stage of a timm model, from the input to the output.

    A stage ends where timm takes features of another scale (`feature_info`: four of a ResNet or a
    ConvNeXt, five of an EfficientNet, each block of a ViT). The stem belongs to the first stage,
    what follows the last one (a norm, a last convolution) to the last. Parameters of the model
    itself (position embeddings) are in no stage. Empty where timm does not say how the model is
    divided.
    """
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        return []
    # Name of a parameter -> number of its group, in the order of the forward pass.
    group_of: dict[str, int] = group_parameters(
        model, model.group_matcher(coarse=True), reverse=True
    )
    ends = _ends(model, group_of)
    names: list[set[str]] = [set() for _ in ends]
    for name, group in group_of.items():
        place = next((at for at, end in enumerate(ends) if group <= end), len(ends) - 1)
        names[place].add(name)
    stages = [list(_whole_modules(model, "", own)) for own in names]
    return [stage for stage in stages if stage]


def _ends(model: Any, group_of: dict[str, int]) -> list[int]:
    """The last group of each stage, rising: those of `feature_info`, or else every group."""
    ends: list[int] = []
    for feature in getattr(model, "feature_info", None) or ():
        inside = [
            group for name, group in group_of.items() if name.startswith(f"{feature['module']}.")
        ]
        if inside and (not ends or max(inside) > ends[-1]):
            ends.append(max(inside))
    return ends if len(ends) > 1 else sorted(set(group_of.values()))


def _whole_modules(module: nn.Module, prefix: str, names: set[str]) -> Iterator[nn.Module]:
    """The largest modules inside `module` whose parameters are all among `names`."""
    for child_name, child in module.named_children():
        own = {f"{prefix}{child_name}.{name}" for name, _ in child.named_parameters()}
        if own and own <= names and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        elif own & names:
            yield from _whole_modules(child, f"{prefix}{child_name}.", names)


def recomputed_parts(
    encoder: nn.Module, stages: Sequence[nn.Module | Sequence[nn.Module]], *inputs: torch.Tensor
) -> list[nn.Module]:
    """What gradient checkpointing may recompute of `stages`: modules that are called as a whole.

    Some models call only parts of a stage; these parts are taken then. A layer of its own (one
    convolution) is left out, because its input is kept anyway. One small forward pass of `inputs`
    shows which modules are called. timm's own `set_grad_checkpointing` is not used: it lets a
    BatchNorm count each micro-batch twice, and not all models have it.
    """
    flat = [m for stage in stages for m in ([stage] if isinstance(stage, nn.Module) else stage)]
    if is_blank():
        return [module for module in flat if any(module.children())]
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda one, _: called.add(one))
        for part in flat
        for module in part.modules()
    ]
    try:
        with torch.no_grad(), eval_mode(encoder):
            encoder(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [module for part in flat for module in _called(part, called)]


def _called(module: nn.Module, called: set[nn.Module]) -> Iterator[nn.Module]:
    if not any(module.children()):
        return
    if module in called:
        yield module
        return
    for child in module.children():
        yield from _called(child, called)
