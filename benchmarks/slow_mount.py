"""A folder mounted again, read-only, with a delay before each answer: a stand-in for slow storage.

    python benchmarks/slow_mount.py FOLDER MOUNT --delay-ms 5 --counts FILE

Needs FUSE, libfuse 2 and the package mfusepy. Runs until the mount is ended (`fusermount -u MOUNT`
or `umount MOUNT`). The kernel's page cache works as on a network file system: what was read once
is not asked for again. FILE has the number of read requests and their bytes so far.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy as fuse


class SlowFolder(fuse.Operations):
    """Reads of `root`, each `delay_s` late."""

    use_ns = True

    def __init__(self, root: Path, delay_s: float, counts: Path) -> None:
        self._root = root
        self._delay_s = delay_s
        self._counts = counts
        self._lock = threading.Lock()
        self._requests, self._bytes = 0, 0

    def _of(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._of(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        times = {f"st_{letter}time": getattr(found, f"st_{letter}time_ns") for letter in "acm"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._of(path))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self._of(path), os.O_RDONLY)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        time.sleep(self._delay_s)
        found = os.pread(fh, size, offset)
        with self._lock:
            self._requests += 1
            self._bytes += len(found)
            counts = {"requests": self._requests, "bytes": self._bytes}
            self._counts.write_text(json.dumps(counts))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("mount", type=Path)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--counts", type=Path, required=True)
    options = parser.parse_args()
    slow = SlowFolder(options.folder.resolve(), options.delay_ms / 1000, options.counts)
    # As on NFS, an open file's pages stay in the cache unless its time or size has changed.
    fuse.FUSE(slow, str(options.mount), foreground=True, ro=True, auto_cache=True)


if __name__ == "__main__":
    main()
