"""Running statistics: averaged into copies, put in for a while, kept from padded rows."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsa.config import Config
from mmsa.data.plan import batch_plan, deal
from mmsa.models.batchnorm import (
    averaged_statistics,
    frozen_statistics,
    running_statistics,
    with_statistics,
)
from mmsa.models.model import build_model
from mmsa.training.model_for_engine import statistics_for
from tests.models.tiny import image_settings


def trained_model() -> nn.Sequential:
    """Two BatchNorm layers, one of them nested, that have seen two batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    )
    for _ in range(2):
        model(torch.randn(8, 3))
    return model


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_the_statistics_have_their_state_dict_names() -> None:
    model = trained_model()
    statistics = running_statistics(model)
    assert sorted(statistics) == [
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
        "2.1.num_batches_tracked",
        "2.1.running_mean",
        "2.1.running_var",
    ]
    for name, value in statistics.items():
        assert value.data_ptr() == model.state_dict()[name].data_ptr()
    without = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert running_statistics(without) == {}


def test_one_process_averages_to_its_own_in_copies(accelerator: Accelerator) -> None:
    assert accelerator.num_processes == 1
    model = trained_model()
    before = bytes_of(model)
    averaged = averaged_statistics(model, accelerator)
    live = running_statistics(model)
    assert averaged.keys() == live.keys()
    for name, value in averaged.items():
        assert torch.equal(value, live[name])
        assert value.dtype == live[name].dtype
        value.fill_(0)
    assert bytes_of(model) == before


def test_other_statistics_hold_inside_alone() -> None:
    model = trained_model()
    before = bytes_of(model)
    others = {name: torch.full_like(value, 5) for name, value in running_statistics(model).items()}
    with with_statistics(model, others):
        inside = running_statistics(model)
        assert all(bool((value == 5).all()) for value in inside.values())
        model(torch.randn(8, 3))  # moves the statistics further
    assert bytes_of(model) == before
    assert all(bool((value == 5).all()) for value in others.values())


def test_own_statistics_come_back_after_an_error() -> None:
    model = trained_model()
    before = bytes_of(model)
    others = {name: torch.zeros_like(value) for name, value in running_statistics(model).items()}
    with pytest.raises(KeyError), with_statistics(model, others):
        raise KeyError("inside")
    del others["2.1.running_var"]
    with pytest.raises(KeyError), with_statistics(model, others):
        raise AssertionError("not reached")
    assert bytes_of(model) == before


def test_frozen_statistics_normalise_by_what_was_seen() -> None:
    model = trained_model().train()
    before = bytes_of(model)
    rows = torch.randn(1, 3)
    expected = trained_model().eval()(rows)
    with frozen_statistics(model, active=True):
        assert torch.equal(model(rows), expected)
        assert model.training  # dropout, say, stays on
    assert bytes_of(model) == before
    assert all(module.training for module in model.modules())


def test_frozen_statistics_leave_eval_layers_alone() -> None:
    model = trained_model().train()
    model[1].eval()  # of a frozen encoder
    with frozen_statistics(model, active=True):
        assert not model[1].training
        assert not model[2][1].training
    assert not model[1].training
    assert model[2][1].training


def test_inactive_freezing_does_nothing() -> None:
    model = trained_model().train()
    before = bytes_of(model)
    with frozen_statistics(model, active=False):
        model(torch.randn(8, 3))
    changed = {name for name, value in bytes_of(model).items() if value != before[name]}
    assert changed == set(running_statistics(model))


@pytest.mark.parametrize(
    ("batch_norm", "samples", "micro_batch_size", "expected"),
    [
        ("sync", 6, 8, [[False], [False], [False], [False]]),  # 1, 2, 1 and 2 samples
        ("sync", 8, 8, [[True], [True], [True], [True]]),
        ("sync", 32, 8, [[True], [True], [True], [True]]),
        ("sync", 15, 4, [[False, False], [False, False], [False, False], [False, False]]),
        ("train", 6, 8, [[False], [True], [False], [True]]),
    ],
)
def test_ranks_that_synchronise_agree_on_a_small_last_step(
    batch_norm: str, samples: int, micro_batch_size: int, expected: list[list[bool]]
) -> None:
    """Rank -> micro-step -> are the layers in training mode? One that is waits for all ranks."""
    section = {"image_encoder": image_settings(batch_norm=batch_norm)}
    head = {"name": "image_only", "hidden": [4], "batch_norm": True}
    config = Config.model_validate({"model": {**section, "fusion": head}})
    model = build_model(config.model, 3).train()
    plan = batch_plan(
        32 + samples,
        global_batch_size=32,
        micro_batch_size=micro_batch_size,
        world_size=4,
        drop_last=False,
    )
    found = []
    for rank in range(4):
        found.append([])
        for micro_batch in deal(None, samples, plan, rank):
            batch = {"num_real": len(micro_batch), "num_images": max(1, len(micro_batch))}
            with statistics_for(model, config, batch, plan, step=1):
                modes = {m.training for m in model.modules() if isinstance(m, _BatchNorm)}
            found[-1] += modes
    assert found == expected
