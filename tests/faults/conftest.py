"""A small packed synthetic set, and the launches of `tests/end_to_end/harness.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "end_to_end"))

from harness import pack_synthetic


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 174 samples to train, 58 for validation: ten steps of 16 an epoch."""
    return pack_synthetic(tmp_path_factory.mktemp("synthetic"), samples=300, ratios="6:2:2")
