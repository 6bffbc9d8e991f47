"""The shards of each fold of a study, packed once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from launch.folds import protocols_of
from launch.study.question import Study
from mmsa.extensions import as_options
from mmsa.foundation.file_lock import FileLock

_one_here = threading.Lock()  # a file lock is the process's, not the thread's


def pack_fold(study: Study, number: int, shards: Path, log: Path) -> int:
    """Pack fold `number` into `shards` unless they are there; the exit code of `pack`.

    Drivers on other machines wait for the one that packs.
    """
    shards.parent.mkdir(parents=True, exist_ok=True)
    with _one_here, FileLock(shards.with_suffix(".lock"), wait_s=86_400):
        if (shards / "manifest.json").exists():
            return 0
        command = [sys.executable, *pack_command(study, number, shards), "--quiet", "--resume"]
        with log.open("a", encoding="utf-8") as lines:
            return subprocess.run(
                command, stdout=lines, stderr=subprocess.STDOUT, check=False
            ).returncode


def pack_command(study: Study, number: int, shards: Path) -> list[str]:
    """The arguments of Python that pack fold `number` of a study with folds into `shards`."""
    folds = study.folds
    assert folds is not None
    protocol = protocols_of(folds.protocol)[number - 1]
    words = ["-m", "shards", "pack", folds.source, folds.raw, str(shards), "--protocol", protocol]
    return [*words, *folds.options, *as_options(study.imports)]
