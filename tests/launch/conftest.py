from __future__ import annotations

from pathlib import Path

import pytest
from packed import packed_set


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Settings of a run on 25 samples with a global batch of 16."""
    (tmp_path / "shards").mkdir()
    packed_set(tmp_path / "shards")
    return [
        "launch/runs/demo.yaml",
        f"data.shards={tmp_path / 'shards'}",
        f"run.dir={tmp_path / 'run'}",
        "train.global_batch_size=16",
        "train.micro_batch_size=2",
    ]
