"""Depthwise convolutions of EfficientNet-Lite0 on a CPU: float32, bf16, float32 inside bf16.

    python -m benchmarks.depthwise [--batch 16] [--rounds 3] [--json FILE]

Each shape that the network has at 224 px, forward and backward pass, one thread; in channels last
where an arm does not say otherwise. The arms alternate; CPU milliseconds of the fastest round of
each, and their sums over the network. `float32 inside bf16` takes and returns bf16, as a
convolution that is left out of autocast does.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import results


class Shape(NamedTuple):
    """A depthwise convolution and the side of its input."""

    channels: int
    kernel: int
    stride: int
    side: int


def shapes_of_lite0() -> Counter[Shape]:
    """The depthwise convolutions of the network and how often each occurs."""
    import timm

    found: Counter[Shape] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        kernel, stride = module.kernel_size[0], module.stride[0]
        found[Shape(module.in_channels, kernel, stride, inputs[0].shape[-1])] += 1

    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.register_forward_pre_hook(note)
        network(torch.zeros(1, 3, 224, 224))
    return found


def in_float32(convolution: nn.Module, given: Tensor) -> Tensor:
    """bf16 in and out, float32 between: both casts count."""
    found: Tensor = convolution(given.float())
    return found.bfloat16()


def arms_of(shape: Shape, batch: int) -> dict[str, Callable[[], None]]:
    """Arm -> one forward and backward pass."""
    padding = (shape.kernel - 1) // 2
    options: dict[str, Any] = {"padding": padding, "groups": shape.channels, "bias": False}
    plain = nn.Conv2d(shape.channels, shape.channels, shape.kernel, shape.stride, **options)
    images = torch.randn(batch, shape.channels, shape.side, shape.side)

    def arm(
        dtype: torch.dtype,
        run: Callable[[nn.Module, Tensor], Tensor],
        layout: torch.memory_format = torch.channels_last,
    ) -> Callable[[], None]:
        given = images.to(dtype).contiguous(memory_format=layout).requires_grad_()
        convolution = copy.deepcopy(plain).to(memory_format=layout)

        def passes() -> None:
            output = run(convolution, given)
            output.backward(torch.ones_like(output))

        return passes

    def under_autocast(convolution: nn.Module, given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = convolution(given)
        return found

    def as_it_is(convolution: nn.Module, given: Tensor) -> Tensor:
        found: Tensor = convolution(given)
        return found

    return {
        "float32": arm(torch.float32, as_it_is),
        "float32, channels first": arm(torch.float32, as_it_is, torch.contiguous_format),
        "bf16": arm(torch.bfloat16, under_autocast),
        "float32 inside bf16": arm(torch.bfloat16, in_float32),
    }


def milliseconds(shape: Shape, batch: int, rounds: int) -> dict[str, float]:
    """The fastest round of each arm."""
    arms = arms_of(shape, batch)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, passes in arms.items():
            begin = time.process_time()
            passes()
            if turn:  # the first one warms up
                times[name].append(1e3 * (time.process_time() - begin))
    return {name: min(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    total: dict[str, float] = {}
    for shape, times in shapes_of_lite0().items():
        found = milliseconds(shape, options.batch, options.rounds)
        for name, spent in found.items():
            total[name] = total.get(name, 0.0) + times * spent
        named = f"{times} x {shape.channels} channels, {shape.side} px, "
        named += f"{shape.kernel}x{shape.kernel}, stride {shape.stride}"
        rows.append([named, *(f"{spent:.1f}" for spent in found.values())])
    rows.append(["all of the network", *(f"{spent:.0f}" for spent in total.values())])
    facts = results.hardware()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(results.markdown(["", *(f"{name}, ms" for name in total)], rows))
    results.write_json(options.json, {"hardware": facts, "batch": options.batch, "total": total})


if __name__ == "__main__":
    main()
