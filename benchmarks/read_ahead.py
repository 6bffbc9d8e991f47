"""`data.read_ahead` on a file system that answers late: samples per second and requests.

    python -m benchmarks.read_ahead SHARDS [--delay-ms 5] [--window 4] [--json FILE]

SHARDS are mounted again by slow_mount.py, anew for each arm, so that no arm finds what another one
has read. Images are not decoded: the arms differ by what they read alone. Arms: our loader without
and with reading ahead, and webdataset, which reads the same tars from beginning to end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import write_json
from mmsa.data.batch_requests import TrainRequests
from mmsa.data.manifest import load_manifest
from mmsa.data.plan import batch_plan
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Loader
from mmsa.labels import class_map
from mmsa.preprocessing import Preprocessing

BATCH = 32


@contextmanager
def slow(folder: Path, delay_ms: float) -> Iterator[tuple[Path, Callable[[], dict[str, int]]]]:
    """(the slow copy of `folder`, a function that tells what was asked of it so far)."""
    with tempfile.TemporaryDirectory() as temporary:
        mount, counts = Path(temporary, "mount"), Path(temporary, "counts")
        mount.mkdir()
        script = str(Path(__file__).with_name("slow_mount.py"))
        options = ["--delay-ms", str(delay_ms), "--counts", str(counts)]
        process = subprocess.Popen([sys.executable, script, str(folder), str(mount), *options])
        try:
            while not os.path.ismount(mount):
                time.sleep(0.05)
                if process.poll() is not None:
                    raise SystemExit("the mount failed")
            (mount / "manifest.json").read_bytes()
            yield mount, lambda: json.loads(counts.read_text())
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=False)
            process.wait()


def ours(shards: Path, *, ahead: bool, window: int, workers: int) -> Iterator[int]:
    """Samples of one epoch, batch by batch."""
    manifest = load_manifest(str(shards))
    reader = SplitReader(shards, manifest, "train", class_map(manifest.classes, None))
    plan = batch_plan(len(reader), global_batch_size=BATCH, micro_batch_size=BATCH, world_size=1)
    local = (0, 1) if ahead else None
    requests = TrainRequests(reader, plan, 0, 0, window, True, 0, plan.steps_per_epoch, local)
    for batch in Loader(requests, Preprocessing(image=None, max_tokens=128), None, workers):
        yield len(batch["keys"])


def webdatasets(shards: Path, workers: int) -> Iterator[int]:
    import webdataset as wds
    from torch.utils.data import DataLoader

    tars = sorted(str(path) for path in shards.glob("train-*.tar"))
    stages = wds.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000)
    for _ in DataLoader(stages, batch_size=None, num_workers=workers):
        yield 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--window", type=int, default=4, help="shards of a window")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    common = {"window": options.window, "workers": options.workers}
    arms: dict[str, Callable[[Path], Iterator[int]]] = {
        "ours": lambda folder: ours(folder, ahead=False, **common),
        "ours, data.read_ahead": lambda folder: ours(folder, ahead=True, **common),
        "webdataset": lambda folder: webdatasets(folder, options.workers),
    }
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        with slow(options.shards, options.delay_ms) as (folder, asked):
            begin, first, samples = time.monotonic(), 0.0, 0
            for number in arm(folder):
                first = first or time.monotonic() - begin
                samples += number
            seconds = time.monotonic() - begin - first
            rows.append(
                {
                    "arm": name,
                    "samples": samples,
                    "first_s": round(first, 2),
                    "samples_per_s": round(samples / seconds, 1),
                    **asked(),
                }
            )
            print(rows[-1], flush=True)
    if options.json:
        write_json(options.json, {"delay_ms": options.delay_ms, **common, "rows": rows})


if __name__ == "__main__":
    main()
