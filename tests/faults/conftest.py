"""A small packed synthetic set, and the launches of `tests/end_to_end/harness.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "end_to_end"))

from shards.__main__ import main as shards_main


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 174 samples to train, 58 for validation: ten steps of 16 an epoch."""
    directory = tmp_path_factory.mktemp("synthetic")
    raw, out = str(directory / "raw"), str(directory / "shards")
    assert shards_main(["synthetic", raw, "--samples", "300", "--quiet"]) == 0
    packing = ["--image-short-side", "64", "--ratios", "6:2:2", "--quiet"]
    assert shards_main(["pack", "mvsa-single", raw, out, *packing]) == 0
    return Path(out)
