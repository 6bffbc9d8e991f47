"""The mean of weights, and BatchNorm statistics for it.

The mean of running statistics is not the statistics of the mean: a layer of mixed weights gives
other activations than any ingredient. So they are computed again from the training split, as for
averaged weights in Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018, section
3.2. Layers whose statistics are the same in all ingredients (frozen ones) keep them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsa.data.stream import Batch
from mmsa.evaluation.predict import inputs_of, to_device
from mmsa.models.batchnorm import frozen_statistics, running_statistics
from mmsa.models.model import SentimentModel

State = Mapping[str, Tensor]


def mean_of(states: Iterable[State]) -> dict[str, Tensor]:
    """The mean of tensors by name, summed in float64 in the order of `states`.

    Integers (counts of batches, tables of positions) are those of the first. One state at a time is
    in memory, next to the sum.
    """
    first: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        count += 1
        if not first:
            first = dict(state)
            sums = {n: t.double() for n, t in state.items() if t.is_floating_point()}
            continue
        for name, total in sums.items():
            total += state[name].double()
    return {
        name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor.clone()
        for name, tensor in first.items()
    }


def layers_with_other_statistics(model: nn.Module, states: Sequence[State]) -> set[str]:
    """The names of the BatchNorm layers of `model` whose running statistics differ in `states`."""
    names = [name for name in running_statistics(model) if states[0][name].is_floating_point()]
    return {
        name.rpartition(".")[0]
        for name in names
        if any(not torch.equal(state[name], states[0][name]) for state in states[1:])
    }


@torch.no_grad()
def recompute_statistics(
    model: SentimentModel,
    layers: Collection[str],
    batches: Iterator[Batch],
    *,
    num_batches: int,
    device: torch.device,
) -> None:
    """Give the BatchNorm `layers` of `model` the mean statistics of `num_batches` batches.

    All else is in eval mode. Where only the image encoder has such layers, texts are not computed.
    As in training, the image encoder does not count a batch with fewer than two images; a layer
    that counts no batch keeps its statistics.
    """
    only_images = all(name.startswith("image_encoder.") for name in layers)
    with _collecting(model, layers):
        for _ in range(num_batches):
            batch = to_device(next(batches), device)
            if model.image_encoder is None:
                model(*inputs_of(batch))
                continue
            with frozen_statistics(model.image_encoder, batch["num_images"] < 2):
                if only_images:
                    model.image_encoder(batch["images"])
                else:
                    model(*inputs_of(batch))


@contextmanager
def _collecting(model: nn.Module, layers: Collection[str]) -> Iterator[None]:
    """Inside, `layers` collect the plain mean of what they see, instead of what they had."""
    model.eval()
    modules = [module for name, module in model.named_modules() if name in layers]
    found = [(module, module.momentum) for module in modules if isinstance(module, _BatchNorm)]
    for layer, _ in found:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.zero_()
        layer.momentum = None  # a mean over all batches; the first one replaces what was there
        layer.train()
    try:
        yield
    finally:
        for layer, momentum in found:
            layer.momentum = momentum
        model.eval()
