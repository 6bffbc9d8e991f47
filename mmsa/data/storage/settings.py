"""Which cache the processes of this command use: the same for every set that they open."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PATIENCE_S = 120.0


@dataclass(frozen=True)
class CacheSettings:
    """A node's cache. `directory` None: local folders are read in place, and what comes from a
    store goes to `default_directory`.

    `patience_s` is how long a download may go on without a byte. `run` names the downloader that
    fetches ahead, if this command has one.
    """

    directory: Path | None = None
    folders: bool = True  # local folders are read through the cache, too
    limit_bytes: int | None = None
    patience_s: float = DEFAULT_PATIENCE_S
    run: str | None = None


_settings = CacheSettings()


def default_directory() -> Path:
    """Where files from stores go if no cache was named."""
    return Path.home() / ".cache" / "mmsa" / "shards"


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add `--cache DIR`, for `CacheSettings.directory`."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for what comes from a URL (default: ~/.cache/mmsa/shards)",
    )


def use_cache(settings: CacheSettings) -> None:
    """Use `settings` for every set that this process opens from now on.

    Loader processes get them with their reader.
    """
    global _settings
    _settings = settings


def cache_settings() -> CacheSettings:
    """The settings in force."""
    return _settings
