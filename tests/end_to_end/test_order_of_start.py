"""Loader workers start before the device is touched, and tokenizers start no threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import TINY
from small_set import loader_workers, small_set

from mmsa.engines import engine
from train import main as train_main


def test_workers_start_before_the_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked or spawned later, they would inherit the device's state or wait for its locks."""

    def workers() -> set[int]:
        return {one.pid for one in loader_workers(psutil.Process().children(recursive=True))}

    before = workers()  # left by earlier tests in this process
    make_accelerator = engine.make_accelerator
    found: dict[str, Any] = {}

    def noting(*arguments: Any, **named: Any) -> Any:
        found["workers"] = len(workers() - before)
        found["parallelism"] = os.environ.get("TOKENIZERS_PARALLELISM")
        return make_accelerator(*arguments, **named)

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setattr(engine, "make_accelerator", noting)
    shards = small_set(tmp_path / "shards")
    settings = [f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main([*TINY, *settings, "data.num_workers=2"]) == 0
    assert found == {"workers": 4, "parallelism": "false"}  # two for training, two for validation
