"""A small synthetic set, packed once with the project's own commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import pack_synthetic


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 290 samples: 174 for training, 58 for validation, 58 for testing."""
    return pack_synthetic(tmp_path_factory.mktemp("synthetic"), samples=300, ratios="6:2:2")
