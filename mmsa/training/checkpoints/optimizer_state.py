"""The optimizer's state in a file that depends on neither engine nor world size.

    exp_avg/NAME, exp_avg_sq/NAME   Adam's moments of the trained parameter NAME, in its shape
    step/NAME                       how many steps it has made (0-d)

NAME is the parameter's name in the model's state dict. So a run resumes at another world size, or
with another engine, through the same code as at the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmsa.engines.zero_partitions import (
    base_optimizer,
    fragment_of,
    gather,
    on_host,
    partitions_of,
    whole_shape,
    zero_optimizer,
)
from mmsa.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


def gather_optimizer_state(
    model: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    to_host: Callable[[str, Tensor], Tensor] = on_host,
) -> dict[str, Tensor] | None:
    """The state of all trained parameters of the bare `model`; all ranks call it.

    Returns it in CPU memory on the main rank, None on the others; empty before the first step.
    Tensors that are contiguous in CPU memory are not copied: write them before the next step, or
    give a `to_host` that copies.
    """
    zero = zero_optimizer(optimizer)
    state = base_optimizer(optimizer).state
    gathered: dict[str, Tensor] = {}
    if zero is not None and state:
        for name, parameter in _trained(model):
            for moment in MOMENTS:
                value = _gather_moment(parameter, moment, zero, state, accelerator)
                if value is not None:
                    gathered[f"{moment}/{name}"] = to_host(f"{moment}/{name}", value)
            gathered[f"{_STEP}/{name}"] = _common_step(zero, state)
    elif zero is None and accelerator.is_main_process:
        for name, parameter in _trained(model):
            for slot, value in state.get(parameter, {}).items():
                gathered[f"{slot}/{name}"] = to_host(f"{slot}/{name}", value)
    return gathered if accelerator.is_main_process else None


def load_optimizer_state(file: Path, model: nn.Module, optimizer: Any) -> None:
    """Fill the prepared `optimizer` of the bare `model` from `file`; not a collective.

    Each rank reads what it keeps: under ZeRO only its own fragments. Raises `UserError` where the
    file cannot be read or its names and shapes are not those of the trained parameters.
    """
    zero = zero_optimizer(optimizer)
    base = base_optimizer(optimizer)
    try:
        with safe_open(file, framework="pt") as stored:
            with_state = _check_names(file, stored, model)
            if with_state and zero is not None:
                for partition in partitions_of(zero):
                    base.state[partition] = _fresh_state(partition, base)
            for name, parameter in with_state.items():
                if zero is None:
                    base.state[parameter] = _fresh_state(parameter, base)
                    _fill(base.state[parameter], stored, name)
                else:
                    _fill_fragment(parameter, stored, name, zero, base.state)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); remove its checkpoint to resume from the one before"
        ) from None


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def _gather_moment(
    parameter: nn.Parameter, moment: str, zero: Any, state: Any, accelerator: Accelerator
) -> Tensor | None:
    fragment = fragment_of(parameter, zero)
    if fragment is None:
        return gather(whole_shape(parameter), 0, None, accelerator)
    values = fragment.within(state[fragment.partition][moment])
    return gather(whole_shape(parameter), fragment.start, values, accelerator)


def _common_step(zero: Any, state: Any) -> Tensor:
    """Steps so far: ZeRO steps all partitions together, even where a gradient is missing."""
    steps = {float(state[partition][_STEP]) for partition in partitions_of(zero)}
    assert len(steps) == 1, f"partitions with different steps: {sorted(steps)}"
    return torch.tensor(steps.pop())


def _check_names(file: Path, stored: Any, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have a state in the file, by name; `UserError` unless all names fit.

    A parameter may lack all of its state: one that never had a gradient.
    """
    keys = set(stored.keys())
    with_state = {name: one for name, one in _trained(model) if f"{_STEP}/{name}" in keys}
    slots = {
        f"{moment}/{name}": list(whole_shape(parameter))
        for name, parameter in with_state.items()
        for moment in MOMENTS
    }
    expected = slots.keys() | {f"{_STEP}/{name}" for name in with_state}
    problems = [f"missing {key}" for key in sorted(expected - keys)]
    problems += [f"unexpected {key}" for key in sorted(keys - expected)]
    for key in sorted(slots.keys() & keys):
        found = stored.get_slice(key).get_shape()
        if found != slots[key]:
            problems.append(f"{key} is {tuple(found)}, the parameter is {tuple(slots[key])}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(
            f"{file} is not an optimizer state of this model: {'; '.join(problems[:4])}{more}. "
            "Resume with the settings that the run was started with"
        )
    return with_state


def _fresh_state(tensor: Tensor, base: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state that torch's Adam makes at its first step, of zeros."""
    # The fused kernel takes its step number from the parameter's device, the plain loop from CPU.
    device = tensor.device if base.defaults.get("fused") else torch.device("cpu")
    moments = {name: torch.zeros_like(tensor, requires_grad=False) for name in MOMENTS}
    return {_STEP: torch.zeros((), dtype=torch.float32, device=device), **moments}


def _fill(state: dict[str, Tensor], stored: Any, name: str) -> None:
    for slot, value in state.items():
        value.copy_(stored.get_tensor(f"{slot}/{name}"))


def _fill_fragment(parameter: nn.Parameter, stored: Any, name: str, zero: Any, state: Any) -> None:
    step = stored.get_tensor(f"{_STEP}/{name}")
    for partition in partitions_of(zero):
        state[partition][_STEP].copy_(step)
    fragment = fragment_of(parameter, zero)
    if fragment is None:
        return
    for moment in MOMENTS:
        values = stretch(stored.get_slice(f"{moment}/{name}"), fragment.start, fragment.numel)
        fragment.within(state[fragment.partition][moment]).copy_(values)


def stretch(stored: Any, start: int, numel: int) -> Tensor:
    """Elements `start` to `start + numel` of a stored tensor, flattened; reads whole rows only."""
    shape = stored.get_shape()
    if not shape:
        return stored[...].reshape(1)
    row = math.prod(shape[1:])
    first, last = start // row, -(-(start + numel) // row)
    return stored[first:last].flatten().narrow(0, start - first * row, numel)
