"""Gradient checkpointing: activations of layers are recomputed in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", by `torch.utils.checkpoint`.
Memory falls to about one layer's activations; a step costs about one more forward pass. Results are
bit-identical: dropout repeats its random numbers, and a BatchNorm counts each micro-batch once.

Under `torch.compile` torch itself plans what the backward graph recomputes: it repeats random
numbers and updates a buffer once. A layer that cannot be in one graph runs uncompiled, as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsa.errors import UserError


def recompute_in_backward(
    layers: Sequence[nn.Module | Sequence[nn.Module]], *, section: str
) -> None:
    """Make each of `layers` forget its activations until the backward pass.

    Names of tensors do not change. `section` ("model.text_encoder") is for the `UserError` raised
    where the layers of an encoder are not known.
    """
    flat = [m for layer in layers for m in ([layer] if isinstance(layer, nn.Module) else layer)]
    if not flat:
        raise UserError(
            f"{section}.gradient_checkpointing=true, but the layers of this encoder are not "
            "known; set it to false"
        )
    for layer in flat:
        layer.forward = _recomputed(layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        computed = False

        # Not by `context_fn`, which torch.compile refuses.
        def layer_pass(*inputs: Any, **named: Any) -> Any:
            nonlocal computed
            if torch.compiler.is_compiling():
                return forward(*inputs, **named)
            with _statistics_left_alone(layer) if computed else nullcontext():
                computed = True
                return forward(*inputs, **named)

        return checkpoint(layer_pass, *inputs, use_reentrant=False, **named)

    return recomputed


def _statistics_left_alone(layer: nn.Module) -> AbstractContextManager[None]:
    """Inside, a BatchNorm in training mode does not count the batch a second time."""

    @contextmanager
    def left_alone() -> Iterator[None]:
        norms = [m for m in layer.modules() if isinstance(m, _BatchNorm) and m.training]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            # Without statistics to update, the pass would save other tensors than the first one.
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.sub_(1)

    return left_alone()
