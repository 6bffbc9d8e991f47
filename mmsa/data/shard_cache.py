"""Which node's cache a command uses: by its configuration."""

from __future__ import annotations

from pathlib import Path

from mmsa.config import DataConfig
from mmsa.data.shard_needs import run_name
from mmsa.data.storage.cache import MARKER
from mmsa.data.storage.settings import (
    DEFAULT_PATIENCE_S,
    CacheSettings,
    cache_settings,
    use_cache,
)

# Of `data.timeout_s`: a rank hears why a download failed before its loader process is given up.
_PATIENCE_SHARE = 0.4
_ENDLESS_S = 7 * 24 * 3600.0


def use_cache_of(data: DataConfig, run_dir: Path | None = None) -> None:
    """Use the cache that `data` names for all sets that this process opens from now on.

    With `run_dir` its training split is fetched by the downloader of that run (`shard_needs.py`).
    """
    patience = data.timeout_s * _PATIENCE_SHARE if data.timeout_s else _ENDLESS_S
    use_cache(
        CacheSettings(
            directory=None if data.cache is None else Path(data.cache),
            limit_bytes=data.cache_limit,
            patience_s=min(patience, DEFAULT_PATIENCE_S) if data.timeout_s else patience,
            run=None if run_dir is None else run_name(run_dir),
        )
    )


def use_cache_of_export(data: DataConfig) -> None:
    """Use the cache of a model's training, if it is on this machine and no other one was named."""
    if data.cache is None or cache_settings().directory is not None:
        return
    if (Path(data.cache).expanduser() / MARKER).is_file():
        use_cache_of(data)
