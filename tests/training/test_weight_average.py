"""The average of the weights: its values, its place in checkpoints, and a run that resumes it.

All engines have it in tests/end_to_end (SAME_EVERYWHERE).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from saving import content_of, save, trained
from torch import nn

from mmsa.engines.weight_average import WeightAverage
from mmsa.errors import UserError
from mmsa.training.checkpoints.average_state import load_live
from mmsa.training.checkpoints.checkpoint import restore
from mmsa.training.checkpoints.disk_space import checkpoint_bytes


def _average(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> WeightAverage:
    return WeightAverage(model, optimizer, accelerator, 0.5)


def test_shares_fall_by_the_decay_and_add_up_to_one(accelerator: Accelerator) -> None:
    """Weights 1, 2, 4 after steps: (1 x 1 + 2 x 2 + 4 x 4) / 7, whatever they were before."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 77.0)
    optimizer = torch.optim.AdamW(model.parameters())
    average = _average(model, optimizer, accelerator)
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        nn.init.constant_(model.weight, value)
        average.update(step)
        if step == 1:
            assert average.of[model.weight].item() == 1.0
    assert average.of[model.weight].item() == pytest.approx(3.0, rel=1e-6)
    assert model.weight.item() == 4.0


def test_statistics_are_averaged_and_frozen_weights_are_not_kept(accelerator: Accelerator) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    average = _average(model, optimizer, accelerator)
    assert len(average.of) == 4
    assert sorted(average.statistics) == ["1.running_mean", "1.running_var"]
    for step, value in enumerate((3.0, 6.0), start=1):
        model[1].running_mean.fill_(value)
        average.update(step)
    assert average.statistics["1.running_mean"].tolist() == pytest.approx([5.0, 5.0])


def test_applied_changes_the_model_and_gives_every_bit_back(accelerator: Accelerator) -> None:
    model, optimizer = trained()
    average = _average(model, optimizer, accelerator)
    average.update(1)
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([-0.0, 0.0, 1e-40, float("inf")])
    before = [value.numpy().tobytes() for value in model.state_dict().values()]
    averages = [value.numpy().tobytes() for value in average.of.values()]
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with average.applied():
        assert [p.detach().numpy().tobytes() for p in model.parameters()] == averages
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert [value.numpy().tobytes() for value in model.state_dict().values()] == before
    assert [value.numpy().tobytes() for value in average.of.values()] == averages
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def _saved(tmp_path: Path, accelerator: Accelerator) -> tuple[Path, nn.Module, WeightAverage]:
    """A checkpoint of a model whose average is not its weights."""
    model, optimizer = trained()
    average = _average(model, optimizer, accelerator)
    for step in (1, 2):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        average.update(step)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = save(tmp_path, 2, accelerator, model=model, optimizer=optimizer, average=average)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return path, model, average


def test_the_export_has_the_average_and_live_the_weights(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path, model, average = _saved(tmp_path, accelerator)
    exported = load_file(path / "export" / "model.safetensors")
    live = load_file(path / "live.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(exported[name], average.of[parameter])
        assert torch.equal(live[name], parameter)
        assert not torch.equal(exported[name], live[name])
    assert torch.equal(live["1.running_mean"], model[1].running_mean)
    own = load_file(path / "statistics-00000.safetensors")
    assert torch.equal(own["average/1.running_mean"], average.statistics["1.running_mean"])
    assert not torch.equal(own["average/1.running_mean"], own["1.running_mean"])
    assert "live.safetensors" in (path / "COMPLETE").read_text()


def test_weights_and_average_come_back(tmp_path: Path, accelerator: Accelerator) -> None:
    path, model, average = _saved(tmp_path, accelerator)
    other, optimizer = trained(seed=1)
    load_live(other, path)
    for name, value in model.state_dict().items():
        assert name.endswith("tracked") or torch.equal(other.state_dict()[name], value)
    again = _average(other, optimizer, accelerator)
    restore(path, accelerator=accelerator, model=other, optimizer=optimizer, average=again)
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(average.of[old], again.of[new])
    for name, value in average.statistics.items():
        assert torch.equal(again.statistics[name], value)


def test_the_disk_need_counts_both(tmp_path: Path, accelerator: Accelerator) -> None:
    path, model, _ = _saved(tmp_path, accelerator)
    written = sum(len(content) for content in content_of(path).values())
    plain, averaged = (checkpoint_bytes(model, 1, averaged=on) for on in (False, True))
    weights = (path / "live.safetensors").stat().st_size
    assert averaged - plain >= weights
    assert averaged >= written


def test_another_models_weights_are_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    path, _, _ = _saved(tmp_path, accelerator)
    with pytest.raises(UserError, match="does not hold the trained weights of this model"):
        load_live(nn.Linear(4, 6), path)
    (path / "live.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"live.safetensors cannot be read .* use another"):
        load_live(nn.Linear(4, 6), path)
