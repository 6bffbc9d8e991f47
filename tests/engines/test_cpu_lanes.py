"""Batches computed at the same time: their order, their bytes, their errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mmsa.engines.cpu_lanes import fix_threads, in_lanes, twin_of


class Network(nn.Module):
    """Convolutions and BatchNorm; counts its calls in a buffer, as some models do."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        before = self.calls.clone()
        output = self.body(images).mean((2, 3))
        assert bool(before == self.calls)  # nobody else is in this module
        return output


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def batches(number: int) -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return iter([torch.rand(4 + i % 3, 3, 24, 24, generator=draw) for i in range(number)])


def computed(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(batch)
    return output


def test_the_bytes_of_one_batch_at_a_time_in_the_same_order(model: Network) -> None:
    alone = list(in_lanes(model, batches(24), computed, lanes=1))
    together = list(in_lanes(model, batches(24), computed, lanes=4))
    assert len(alone) == len(together) == 24
    for (batch, output), (same_batch, same_output) in zip(alone, together, strict=True):
        assert torch.equal(batch, same_batch)
        assert torch.equal(output, same_output)
        assert not same_output.requires_grad


def test_batches_are_computed_at_the_same_time_and_taken_shortly_before(model: Network) -> None:
    both, taken = threading.Barrier(2, timeout=60), []

    def meets(model: nn.Module, batch: int) -> int:
        both.wait()  # passes only if two are here
        return torch.get_num_threads()

    def counted() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    for number, threads in in_lanes(model, counted(), meets, lanes=2):
        assert threads == 1
        assert len(taken) <= number + 4


def test_an_error_is_raised_in_its_turn_and_nothing_goes_on(model: Network) -> None:
    def fails(model: nn.Module, batch: int) -> int:
        if batch == 3:
            raise ValueError("the third")
        return batch

    found: list[int] = []
    with pytest.raises(ValueError, match="the third"):
        found += (one for _, one in in_lanes(model, iter(range(100)), fails, lanes=2))
    assert found == [0, 1, 2]
    assert not [one for one in threading.enumerate() if one.name.startswith("lane")]


def test_a_model_that_cannot_be_copied_computes_alone(model: Network) -> None:
    weight = nn.Parameter(torch.ones(3))
    model.derived = weight * 2  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        twin_of(model)
    expected = [model(batch) for batch in batches(3)]
    found = in_lanes(model, batches(3), computed, lanes=2)
    for (_, output), same in zip(found, expected, strict=True):
        assert torch.equal(output, same)


def test_a_twin_has_the_parameters_and_buffers_of_its_own(model: Network) -> None:
    twin = twin_of(model)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert twin.calls is not model.calls


@pytest.mark.parametrize(
    ("available", "threads", "lanes"), [(1, 1, 1), (2, 1, 2), (64, 1, 4), (2, 4, 1)]
)
def test_how_many_at_a_time(available: int, threads: int, lanes: int) -> None:
    torch.set_num_threads(available)
    assert fix_threads(threads) == lanes
    assert torch.get_num_threads() == threads


def test_one_at_a_time_away_from_the_cpu() -> None:
    elsewhere = nn.Linear(2, 2, device="meta")

    def where(model: nn.Module, batch: int) -> str:
        assert model is elsewhere
        return threading.current_thread().name

    found = in_lanes(elsewhere, iter(range(3)), where, lanes=4)
    assert {name for _, name in found} == {threading.main_thread().name}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
