"""A small packed synthetic set, made once by the project's own commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.__main__ import main as shards_main


def pack_synthetic(directory: Path, *arguments: str, samples: int, ratios: str = "8:1:1") -> Path:
    raw, out = str(directory / "raw"), str(directory / "shards")
    made = shards_main(["synthetic", raw, "--samples", str(samples), "--quiet", *arguments])
    packed = shards_main(
        ["pack", "mvsa-single", raw, out, "--image-short-side", "64", "--ratios", ratios, "--quiet"]
    )
    assert (made, packed) == (0, 0)
    return Path(out)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 290 samples: 174 to train, 58 for validation, 58 for the test."""
    return pack_synthetic(tmp_path_factory.mktemp("synthetic"), samples=300, ratios="6:2:2")
