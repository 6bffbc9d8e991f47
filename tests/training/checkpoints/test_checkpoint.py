"""Checkpoints: what is in them, and what comes back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from saving import content_of, names, save, trained
from torch import nn

from mmsa.checkpoint_folders import is_whole
from mmsa.errors import UserError
from mmsa.training.checkpoints.checkpoint import (
    checkpoint_path,
    last_save_s,
    read_state,
    restore,
)

# Saving and restoring.


def test_a_checkpoint_lists_its_files_with_their_sizes_and_digests(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path = save(tmp_path, 120, accelerator)
    assert path == tmp_path / "checkpoints" / "step-00000120"
    assert path == checkpoint_path(tmp_path, 120)
    files = content_of(path)
    listed = json.loads(files.pop("COMPLETE"))
    assert sorted(files) == [
        "export/digests.json",
        "export/model.safetensors",
        "export/tokenizer/words.txt",
        "optimizer.safetensors",
        "run.yaml",
        "state.json",
        "statistics-00000.safetensors",
    ]
    assert listed == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    assert is_whole(path)
    assert read_state(path) == {
        "format": "mmsa-checkpoint",
        "version": 1,
        "step": 120,
        "best_value": 0.5,
        "world_size": 1,
        "best_step": 1,
        "loss_scale": None,
    }
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000120"]


def test_saving_leaves_the_live_model_as_it_is(tmp_path: Path, accelerator: Accelerator) -> None:
    def train(saving: bool) -> tuple[list[bytes], list[float]]:
        model, optimizer = trained()
        losses = []
        for step in range(4):
            torch.manual_seed(step)
            loss = model(torch.randn(8, 4)).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if saving:
                save(tmp_path, step, accelerator, model=model, optimizer=optimizer)
        assert model.training
        return [value.numpy().tobytes() for value in model.state_dict().values()], losses

    assert train(saving=True) == train(saving=False)


def test_restoring_gives_optimizer_and_statistics_back(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    model, optimizer = trained()
    path = save(tmp_path, 3, accelerator, model=model, optimizer=optimizer)
    other_model, other_optimizer = trained(seed=1)
    restore(path, accelerator=accelerator, model=other_model, optimizer=other_optimizer)
    before, after = optimizer.state_dict(), other_optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for number, slots in before["state"].items():
        for name, value in slots.items():
            assert torch.equal(after["state"][number][name], value)
    for own, restored in zip(model[1].buffers(), other_model[1].buffers(), strict=True):
        assert torch.equal(own, restored)


def test_at_another_world_size_the_ranks_start_from_the_exports_statistics(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path = save(tmp_path, 3, accelerator)
    state = {**read_state(path), "world_size": 2}
    (path / "state.json").write_text(json.dumps(state))
    model, optimizer = trained(seed=1)
    before = [buffer.clone() for buffer in model[1].buffers()]
    restore(path, accelerator=accelerator, model=model, optimizer=optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, model[1].buffers(), strict=True))


def test_a_model_without_batchnorm(tmp_path: Path, accelerator: Accelerator) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    path = save(tmp_path, 1, accelerator, model=model, optimizer=optimizer)
    assert is_whole(path)
    restore(path, accelerator=accelerator, model=model, optimizer=optimizer)


# What may not be read.


def test_a_checkpoint_of_another_format_is_refused(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path = save(tmp_path, 1, accelerator)
    (path / "state.json").write_text(json.dumps({"step": 1, "code_version": "0.0.9"}))
    with pytest.raises(UserError) as refused:
        read_state(path)
    assert "has format None None; this program reads mmsa-checkpoint 1" in str(refused.value)
    assert "Resume with the version of mmsa that wrote it (0.0.9)" in str(refused.value)


def test_nothing_in_it_is_a_pickle(tmp_path: Path, accelerator: Accelerator) -> None:
    files = content_of(save(tmp_path, 1, accelerator))
    for name, content in files.items():
        if name.endswith(".safetensors"):
            length = int.from_bytes(content[:8], "little")
            assert json.loads(content[8 : 8 + length])  # a JSON header, then numbers
        else:
            content.decode("utf-8")


def test_the_loss_scale_of_fp16_comes_back(tmp_path: Path, accelerator: Accelerator) -> None:
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=7)
    accelerator.scaler.scale(torch.ones(()))  # its scale is made at first use
    path = save(tmp_path, 1, accelerator)
    assert read_state(path)["loss_scale"]["scale"] == 512.0
    accelerator.scaler = torch.amp.GradScaler("cpu")
    model, optimizer = trained()
    restore(path, accelerator=accelerator, model=model, optimizer=optimizer)
    assert accelerator.scaler.get_scale() == 512.0
    assert accelerator.scaler.get_growth_interval() == 7


def test_the_time_of_the_last_save_is_kept(tmp_path: Path, accelerator: Accelerator) -> None:
    assert last_save_s(tmp_path) is None
    save(tmp_path, 1, accelerator)
    told = json.loads((tmp_path / "checkpoints" / "last_save.json").read_text())
    assert told["step"] == 1
    assert last_save_s(tmp_path) == told["save_s"]
    assert told["save_s"] > 0
    (tmp_path / "checkpoints" / "last_save.json").write_text("{")
    assert last_save_s(tmp_path) is None
