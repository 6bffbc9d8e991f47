"""One small packed set, made once, for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import raw_tree

from shards.__main__ import main

# 10 positive, 6 negative, 4 neutral, and 2 that conflict
LABELS = (
    ["positive,positive"] * 4
    + ["positive,neutral"] * 3
    + ["neutral,positive"] * 3
    + ["negative,negative"] * 6
    + ["neutral,neutral"] * 4
    + ["positive,negative", "negative,positive"]
)


@pytest.fixture(scope="session")
def small_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_tree(tmp_path_factory.mktemp("raw") / "set", LABELS)


@pytest.fixture(scope="session")
def small_packed(small_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    arguments = ["pack", "mvsa-single", str(small_raw), str(out), "--protocol", "random"]
    assert main([*arguments, "--samples-per-shard", "6", "--quiet"]) == 0
    return out
