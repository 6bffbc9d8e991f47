"""Where an engine keeps what belongs to a parameter.

DDP and a single process hold each parameter and its optimizer state whole. ZeRO concatenates the
parameters of a group, cuts them into one flat partition per rank, and keeps optimizer state for
partitions only; ZeRO-3 cuts each parameter separately. This is the only file that knows DeepSpeed's
layout; everything else refers to parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """The part of a flattened parameter that is in this rank's partition."""

    partition: Tensor  # flat; the key of the optimizer's state
    offset: int  # of the part in the partition
    start: int  # of the part in the flattened parameter
    numel: int

    def within(self, flat: Tensor) -> Tensor:
        """The part in `flat`, a tensor with the partition's layout: a view."""
        return flat.narrow(0, self.offset, self.numel)


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own optimizer, under Accelerate's wrapper and DeepSpeed's."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def zero_optimizer(optimizer: Any) -> Any | None:
    """DeepSpeed's optimizer of ZeRO 1 to 3; None where no partitions are made."""
    layer = optimizer
    while layer is not None:
        if hasattr(layer, "single_partition_of_fp32_groups"):  # ZeRO 1 and 2
            return layer
        if hasattr(layer, "fp32_partitioned_groups_flat"):  # ZeRO 3
            return layer
        layer = getattr(layer, "optimizer", None)
    return None


def partitions_of(zero: Any) -> list[Tensor]:
    """This rank's partitions, flat, of all parameter groups."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)


def trained_storage(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """The tensors in which this rank keeps trained weights, float32: ZeRO's partitions, else the
    trained parameters of the bare `model`."""
    zero = zero_optimizer(optimizer)
    if zero is not None:
        return partitions_of(zero)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def publish(model: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
    """Let the bare `model` compute with what `trained_storage` holds; all ranks call it.

    Does nothing without ZeRO, whose models compute with other tensors than its optimizer updates.
    """
    zero = zero_optimizer(optimizer)
    if zero is None:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        _publish_in_zero3(trained, zero)
        return
    for parameter in trained:
        fragment = fragment_of(parameter, zero)
        start, values = 0, None
        if fragment is not None:
            start, values = fragment.start, fragment.within(fragment.partition)
        bits = _bits(parameter.shape, start, values, accelerator)
        torch.distributed.all_reduce(bits)
        parameter.data.copy_(bits.view(torch.float32).reshape(parameter.shape))


def _publish_in_zero3(trained: list[Any], zero: Any) -> None:
    # What is gathered must be gathered again; small parameters stay so between the steps.
    zero.parameter_offload.partition_all_parameters()
    for parameter in trained:
        fragment = fragment_of(parameter, zero)
        if fragment is not None:
            shown = parameter.ds_tensor.data.view(-1).narrow(0, 0, fragment.numel)
            shown.copy_(fragment.within(fragment.partition))
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def fragment_of(parameter: Any, zero: Any) -> Fragment | None:
    """The fragment of a trained parameter on this rank; None where another rank has all of it."""
    if hasattr(parameter, "ds_id"):
        group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = torch.distributed.get_rank(parameter.ds_process_group) * padded
        numel = min(padded, parameter.ds_numel - start)
        partition = zero.fp32_partitioned_groups_flat[group]
        return Fragment(partition, offset, start, numel) if numel > 0 else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Fragment(
        partition=zero.single_partition_of_fp32_groups[mapping.param_group_index],
        offset=mapping.hp_fragment_address.start,
        start=mapping.lp_fragment_address.start,
        numel=mapping.lp_fragment_address.numel,
    )


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The parameter's shape; ZeRO-3 leaves an empty tensor in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def gather(
    shape: torch.Size, start: int, values: Tensor | None, accelerator: Accelerator
) -> Tensor | None:
    """Assemble a flattened float32 tensor from the ranks' parts; all ranks call it.

    `values` is this rank's part, which begins at `start`, or None. Returns the whole tensor in
    CPU memory on the main rank, None on the others. Bit for bit: the parts are added as
    integers, because the sum of 0.0 and -0.0 as floats loses the sign.
    """
    bits = _bits(shape, start, values, accelerator)
    torch.distributed.reduce(bits, dst=0)
    return bits.view(torch.float32).reshape(shape).cpu() if accelerator.is_main_process else None


def _bits(shape: torch.Size, start: int, values: Tensor | None, accelerator: Accelerator) -> Tensor:
    """A flattened float32 tensor as integers, zeros where this rank has no part of it."""
    bits = torch.zeros(shape.numel(), dtype=torch.int32, device=accelerator.device)
    if values is not None:
        bits.narrow(0, start, values.numel()).copy_(values.detach().view(torch.int32))
    return bits


def on_host(name: str, value: Tensor) -> Tensor:
    """A tensor in contiguous CPU memory; the tensor itself where it is there already."""
    return value.detach().cpu().contiguous()


def gather_weights(
    model: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    to_host: Callable[[str, Tensor], Tensor] = on_host,
) -> dict[str, Tensor] | None:
    """All weights and buffers of the bare `model` by their state-dict names; all ranks call it.

    Returns float32 weights in CPU memory on the main rank, None on the others. Weights that are
    contiguous in CPU memory are not copied: write them before the next step, or give a `to_host`
    that copies. Beyond the result it takes no more memory than the largest parameter.
    """
    zero = zero_optimizer(optimizer)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gathered = {}
    for name, value in model.state_dict().items():
        parameter = parameters.get(name)
        # Only ZeRO-3 cuts the weights: ZeRO 1 and 2 keep them whole on every rank, in float32.
        if parameter is not None and hasattr(parameter, "ds_id"):
            value = _gather_parameter(parameter, zero, accelerator)
        if accelerator.is_main_process:
            gathered[name] = to_host(name, value)
    return gathered if accelerator.is_main_process else None


def _gather_parameter(parameter: Any, zero: Any, accelerator: Accelerator) -> Tensor | None:
    shape = whole_shape(parameter)
    if parameter.requires_grad:
        fragment = fragment_of(parameter, zero)
        if fragment is None:
            return gather(shape, 0, None, accelerator)
        return gather(shape, fragment.start, fragment.within(fragment.partition), accelerator)
    # A frozen parameter is in none of the optimizer's partitions.
    padded = parameter.ds_tensor.numel()
    start = torch.distributed.get_rank(parameter.ds_process_group) * padded
    numel = max(0, min(padded, shape.numel() - start))
    values = parameter.ds_tensor.flatten()[:numel] if numel else None
    return gather(shape, start, values, accelerator)
