"""The optimizer's state by names: whoever wrote it and whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saving import trained
from torch import nn

from mmsa.errors import UserError
from mmsa.training.checkpoints.optimizer_state import (
    gather_optimizer_state,
    load_optimizer_state,
    stretch,
)


def test_names_are_those_of_the_parameters(accelerator: Accelerator) -> None:
    model, optimizer = trained()
    state = gather_optimizer_state(model, optimizer, accelerator)
    assert state is not None
    parameters = ["0.bias", "0.weight", "1.bias", "1.weight", "2.bias", "2.weight"]
    slots = ["exp_avg", "exp_avg_sq", "step"]
    assert sorted(state) == [f"{slot}/{name}" for slot in slots for name in parameters]
    assert state["exp_avg/0.weight"].shape == (6, 4)
    assert state["step/0.weight"].item() == 2.0
    live = optimizer.state[model[0].weight]["exp_avg_sq"]
    assert torch.equal(state["exp_avg_sq/0.weight"], live)


@pytest.mark.parametrize("fused", [True, False])
def test_it_goes_to_an_optimizer_of_other_groups_and_order(
    tmp_path: Path, accelerator: Accelerator, fused: bool
) -> None:
    model, optimizer = trained()
    state = gather_optimizer_state(model, optimizer, accelerator)
    assert state is not None
    save_file(state, tmp_path / "optimizer.safetensors")
    other, _ = trained(seed=1)
    other.load_state_dict(model.state_dict())
    groups = [{"params": [one], "lr": 0.1} for one in reversed(list(other.parameters()))]
    read = torch.optim.AdamW(groups, fused=fused)
    load_optimizer_state(tmp_path / "optimizer.safetensors", other, read)
    for trainee, its_optimizer in ((model, optimizer), (other, read)):
        torch.manual_seed(7)
        trainee(torch.randn(8, 4)).square().sum().backward()
        its_optimizer.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0 if not fused else 1e-6, atol=0)
    assert read.state[other[2].bias]["step"].item() == 3.0


def test_before_the_first_step_there_is_none(tmp_path: Path, accelerator: Accelerator) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    state = gather_optimizer_state(model, optimizer, accelerator)
    assert state == {}
    save_file(state, tmp_path / "optimizer.safetensors")
    load_optimizer_state(tmp_path / "optimizer.safetensors", model, optimizer)
    assert not optimizer.state


def test_a_parameter_without_a_gradient_has_none(tmp_path: Path, accelerator: Accelerator) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = gather_optimizer_state(model, optimizer, accelerator)
    assert state is not None
    assert {key.split("/")[1] for key in state} == {"0.weight", "0.bias"}
    save_file(state, tmp_path / "optimizer.safetensors")
    read = torch.optim.AdamW(model.parameters())
    load_optimizer_state(tmp_path / "optimizer.safetensors", model, read)
    assert set(read.state) == set(model[0].parameters())


def test_the_state_of_another_model_is_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimizer = trained()
    file = tmp_path / "optimizer.safetensors"
    state = gather_optimizer_state(model, optimizer, accelerator)
    assert state is not None
    state["exp_avg/0.weight"] = torch.zeros(4, 6)
    state["exp_avg/9.weight"] = torch.zeros(1)
    del state["exp_avg_sq/2.bias"]
    save_file(state, file)
    with pytest.raises(UserError) as refused:
        load_optimizer_state(file, model, optimizer)
    assert (
        "is not an optimizer state of this model: missing exp_avg_sq/2.bias; unexpected "
        "exp_avg/9.weight; exp_avg/0.weight is (4, 6), the parameter is (6, 4)"
    ) in str(refused.value)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read .*resume from the one before"):
        load_optimizer_state(file, model, optimizer)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (2, 3, 4, 5), (1, 9), (1,)])
def test_a_stretch_is_what_lies_there(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
    save_file({"x": values.reshape(shape)}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"].flatten(), values)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        for start in range(len(values)):
            for numel in range(1, len(values) - start + 1):
                found = stretch(stored.get_slice("x"), start, numel)
                assert torch.equal(found, values[start : start + numel])
