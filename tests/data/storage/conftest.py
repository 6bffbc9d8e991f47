"""A server of the small packed set, and a cache of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.shard_server import ShardServer, serving
from mmsa.data.storage.settings import CacheSettings, cache_settings, use_cache


@pytest.fixture
def server(tiny: Path) -> Iterator[ShardServer]:
    with serving(tiny) as started:
        yield started


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    before = cache_settings()
    use_cache(CacheSettings(tmp_path / "cache", patience_s=2))
    yield tmp_path / "cache"
    use_cache(before)
