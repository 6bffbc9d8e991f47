"""The weights behind an average (`train.ema`) in a checkpoint.

With an average the checkpoint's export holds the averages, as every export does. The weights that
training continues from are in a file of their own:

    live.safetensors               trained parameters and the ranks' mean BatchNorm statistics
    statistics-00000.safetensors   average/NAME next to NAME: this rank's averaged statistics

A checkpoint without an average has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsa.engines.weight_average import WeightAverage
from mmsa.engines.zero_partitions import fragment_of, gather_weights, on_host, zero_optimizer
from mmsa.errors import UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME, WEIGHTS_NAME
from mmsa.foundation.atomic_write import save_tensors
from mmsa.models.batchnorm import averaged_statistics, running_statistics
from mmsa.training.checkpoints.collective_write import together
from mmsa.training.checkpoints.optimizer_state import stretch

LIVE_NAME = "live.safetensors"
_PREFIX = "average/"


def save_live(
    checkpoint: Path, accelerator: Accelerator, model: nn.Module, optimizer: object
) -> None:
    """Write `live.safetensors` of the bare `model` into a checkpoint. A collective.

    Raises `WriteError` on every rank where the main rank failed to write.
    """
    live = gather_live(accelerator, model, optimizer)

    def write() -> None:
        if live is not None:
            save_tensors(live, checkpoint / LIVE_NAME)

    together(accelerator, write)


def gather_live(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: object,
    to_host: Callable[[str, Tensor], Tensor] = on_host,
) -> dict[str, Tensor] | None:
    """The content of `live.safetensors` on the main rank, None on the others. A collective."""
    statistics = averaged_statistics(model, accelerator)
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    wanted = set(trained)
    weights = gather_weights(
        model,
        optimizer,
        accelerator,
        lambda name, value: to_host(name, value) if name in wanted else value,
    )
    if weights is None:
        return None
    live = {name: weights[name] for name in trained}
    return live | {name: one.cpu().contiguous() for name, one in statistics.items()}


def with_averages(own: Mapping[str, Tensor], average: WeightAverage) -> dict[str, Tensor]:
    """This rank's statistics together with their averages, for one file."""
    averaged = {f"{_PREFIX}{name}": value.cpu() for name, value in average.statistics.items()}
    return {**own, **averaged}


@torch.no_grad()
def load_live(model: nn.Module, checkpoint: Path) -> None:
    """Fill the bare `model`, not yet wrapped, with the weights that training continues from.

    Does nothing for a checkpoint without an average. Raises `UserError` where the file cannot be
    read, or is of another model.
    """
    file = checkpoint / LIVE_NAME
    if not file.is_file():
        return
    try:
        live = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); use another checkpoint") from None
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    targets: dict[str, Tensor] = {**own, **running_statistics(model)}
    if {name: value.shape for name, value in live.items()} != {
        name: value.shape for name, value in targets.items()
    }:
        raise UserError(
            f"{file} does not hold the trained weights of this model; resume with the settings "
            "that the run was started with"
        )
    for name, value in targets.items():
        value.copy_(live[name])


@torch.no_grad()
def load_average(
    average: WeightAverage,
    checkpoint: Path,
    model: nn.Module,
    optimizer: object,
    own_statistics: Mapping[str, Tensor] | None,
) -> None:
    """Fill `average` of the prepared `model` from a checkpoint; not a collective.

    Each rank reads what it keeps. `own_statistics` is the content of this rank's file of
    statistics; None at another world size, where the ranks start from the export's. Raises
    `UserError` where a file cannot be read.
    """
    file = checkpoint / CHECKPOINT_EXPORT_NAME / WEIGHTS_NAME
    zero = zero_optimizer(optimizer)
    try:
        with safe_open(file, framework="pt") as stored:
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if zero is None:
                    average.of[parameter].copy_(stored.get_tensor(name))
                    continue
                fragment = fragment_of(parameter, zero)
                if fragment is not None:
                    part = stretch(stored.get_slice(name), fragment.start, fragment.numel)
                    fragment.within(average.of[fragment.partition]).copy_(part)
            for name, value in average.statistics.items():
                own = None if own_statistics is None else own_statistics[f"{_PREFIX}{name}"]
                value.copy_(stored.get_tensor(name) if own is None else own)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"the average of the weights in {checkpoint} cannot be read ({error}); use another "
            "checkpoint"
        ) from None
