"""A checkpoint that a thread writes holds the step at which it was begun, whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from full_disk import files_of_at_most
from safetensors.torch import load_file
from saving import content_of, names, save, trained
from torch import nn

from mmsa.checkpoint_folders import is_whole
from mmsa.engines.weight_average import WeightAverage
from mmsa.errors import UserError
from mmsa.models.batchnorm import averaged_statistics
from mmsa.training.checkpoints.background import BackgroundSaves
from mmsa.training.checkpoints.checkpoint import checkpoint_path, last_save_s, newest_checkpoint


def begin(
    saves: BackgroundSaves,
    step: int,
    model: nn.Module,
    accelerator: Accelerator,
    more: Callable[[Path], None] = lambda export: None,
) -> None:
    def describe(export: Path) -> None:
        (export / "tokenizer").mkdir(parents=True)
        (export / "tokenizer" / "words.txt").write_text("the\n")
        more(export)

    saves.begin(
        step,
        describe_export=describe,
        # The saves of `saving.py` write the weights with the rank's own statistics.
        statistics=averaged_statistics(model, accelerator),
        state={"step": step, "best_value": 0.5, "world_size": 1, "best_step": 1},
        run_config="run: {}\n",
    )


@contextmanager
def thread_held(saves: BackgroundSaves) -> Iterator[None]:
    """The thread begins to write only at the end."""
    go = threading.Event()
    saves._thread.submit(go.wait)
    try:
        yield
    finally:
        go.set()


def step_on(model: nn.Module, optimizer: Any, average: WeightAverage | None) -> None:
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if average is not None:
        average.update(3)


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_that_change_meanwhile_are_not_in_it(
    tmp_path: Path, accelerator: Accelerator, averaged: bool
) -> None:
    """And its bytes are those of a save that training waited for."""
    model, optimizer = trained()
    average = WeightAverage(model, optimizer, accelerator, 0.5) if averaged else None
    parts = {"model": model, "optimizer": optimizer, "average": average}
    (tmp_path / "waited").mkdir()
    waited_for = content_of(save(tmp_path / "waited", 2, accelerator, **parts))
    weight = model[0].weight.detach().clone()

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    saves = BackgroundSaves(run_dir, accelerator, model, optimizer, average)
    with thread_held(saves):
        begin(saves, 2, model, accelerator)
        assert torch.equal(model[0].weight, weight)
        for _ in range(3):
            step_on(model, optimizer, average)
        assert not torch.equal(model[0].weight, weight)
        assert names(run_dir / "checkpoints") == [".step-00000002.tmp"]
    assert saves.finish()
    assert content_of(checkpoint_path(run_dir, 2)) == waited_for

    # The next one uses the same memory again, and the first stays what it is.
    begin(saves, 5, model, accelerator)
    assert saves.finish()
    assert not saves.finish()
    assert content_of(checkpoint_path(run_dir, 2)) == waited_for
    optimizer_file = checkpoint_path(run_dir, 5) / "optimizer.safetensors"
    assert float(load_file(str(optimizer_file))["step/0.weight"]) == 5
    assert (last_save_s(run_dir) or 0) > 0


def test_a_failed_write_is_told_when_it_is_waited_for(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    model, optimizer = trained()
    saves = BackgroundSaves(tmp_path, accelerator, model, optimizer, None)
    begin(saves, 1, model, accelerator)
    assert saves.finish()
    whole = content_of(checkpoint_path(tmp_path, 1))
    with files_of_at_most(100):
        begin(saves, 2, model, accelerator)
        with pytest.raises(UserError, match="the checkpoint of step 2 could not be written"):
            saves.finish()
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000001"]
    assert content_of(checkpoint_path(tmp_path, 1)) == whole
    begin(saves, 3, model, accelerator)
    assert saves.finish()
    assert is_whole(checkpoint_path(tmp_path, 3))


def test_one_that_cannot_be_begun_is_told_at_once(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimizer = trained()
    saves = BackgroundSaves(tmp_path / "gone", accelerator, model, optimizer, None)
    with pytest.raises(UserError, match="was removed or renamed while its run was training"):
        begin(saves, 1, model, accelerator)


def test_kill_9_during_the_write_leaves_the_one_before(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    model, optimizer = trained()
    saves = BackgroundSaves(tmp_path, accelerator, model, optimizer, None)
    begin(saves, 1, model, accelerator)
    assert saves.finish()
    before, torn = checkpoint_path(tmp_path, 1), tmp_path / "checkpoints" / ".step-00000002.tmp"
    whole = content_of(before)
    child = os.fork()
    if child == 0:
        try:  # a thread of its own: the parent's is not in this process
            again = BackgroundSaves(tmp_path, accelerator, model, optimizer, None)
            # The thread waits there, once it has written all other files.
            begin(again, 2, model, accelerator, more=lambda export: os.mkfifo(export / "pipe"))
            again.wait()
        finally:
            os._exit(1)
    deadline = time.monotonic() + 120
    while not (torn / "run.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # still writing
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(tmp_path / "checkpoints") == [torn.name, "last_save.json", before.name]
    assert newest_checkpoint(tmp_path) == before
    assert content_of(before) == whole
    begin(saves, 3, model, accelerator)
    assert saves.finish()
    assert not torn.exists()


def test_a_run_that_fails_lets_the_thread_complete_it(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    model, optimizer = trained()
    saves = BackgroundSaves(tmp_path, accelerator, model, optimizer, None)
    begin(saves, 1, model, accelerator)
    saves.wait()
    assert is_whole(checkpoint_path(tmp_path, 1))
