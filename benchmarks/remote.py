"""Shards from a server, beside four other streams: one epoch each.

    python -m benchmarks.remote SHARDS [--latency-ms 20] [--megabytes-per-s 50] [--epochs 1]

A server in a process of its own answers with this latency and shares this bandwidth among its
connections. Every arm reads the same samples in one process from a cold start, decodes every image
with our function and counts its samples; bytes are counted by the server. `resume` is what the
second half of an epoch costs a process that starts there, until its first batch and in bytes. With
`--epochs` ours read several, the later ones from the cache. `cpu`
is CPU time: of the process that reads, and of those that it started. How the others read is in
remote_peers.py; those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.remote_peers import (
    BATCH_SIZE,
    BUCKET,
    FOLDERS,
    Batches,
    Source,
    decoded,
    installed,
    use_as_s3,
)
from benchmarks.shard_server import COUNTS, ShardServer


@dataclass(frozen=True)
class Measured:
    """Of one arm: samples, seconds to the first batch and to the end, bytes that were sent, CPU
    seconds of this process and of its children."""

    samples: int
    first_s: float
    whole_s: float
    sent: int
    own_cpu_s: float
    others_cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--megabytes-per-s", type=float, default=50)
    parser.add_argument("--window-shards", type=int, nargs="+", default=[16])
    parser.add_argument("--epochs", type=int, default=1, help="of ours, in one go")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--arms", nargs="+", help="the first words of those to run")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="served-") as folder:
        source = Source(arguments.shards.absolute())
        found = arms(arguments.window_shards, arguments.epochs)
        if arguments.arms:
            found = {n: a for n, a in found.items() if n.startswith(tuple(arguments.arms))}
        prepare(source, Path(folder) / BUCKET, found)
        with server(folder) as (url, process):
            source.url = url
            use_as_s3(url)
            next(ours(str(source.shards), None, 1)(0))  # all imports
            for turn in range(arguments.turns):
                for name, arm in found.items():
                    for what in ("epoch", "resume"):
                        one = measured(arm, source, what == "resume", process)
                        print(f"{turn} {name:24} {what:6} {in_words(one)}", flush=True)


def in_words(one: Measured) -> str:
    return (
        f"{one.samples:6} samples {one.samples / one.whole_s:6.0f} a second, "
        f"first batch {one.first_s:6.2f} s, whole {one.whole_s:6.2f} s, {one.sent / 1e6:6.1f} MB, "
        f"cpu {one.own_cpu_s:5.2f} + {one.others_cpu_s:5.2f} s"
    )


def prepare(source: Source, bucket: Path, found: Collection[str]) -> None:
    """What the server has: our set, and that of each peer with a format of its own."""
    bucket.mkdir()
    (bucket / "set").symlink_to(source.shards)
    for name, peer in installed().items():
        if peer.write is not None and name in found:
            peer.write(source, bucket / FOLDERS[name])


def serve(arguments: argparse.Namespace) -> None:
    """The server's process: until its standard input ends."""
    started = ShardServer(arguments.serve, latency_s=arguments.latency_ms / 1000)
    started.bytes_per_s = arguments.megabytes_per_s * 1e6
    print(started.url, flush=True)
    sys.stdin.read()
    started.close()


@contextmanager
def server(folder: str) -> Iterator[tuple[str, int]]:
    """The URL of a server of `folder`, and its process."""
    command = [sys.executable, "-m", "benchmarks.remote", *sys.argv[1:], "--serve", folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait()


def measured(
    arm: Callable[[Source, Path], Batches], source: Source, resume: bool, server: int
) -> Measured:
    """One cold start of an arm, from nothing to its last batch."""
    counted(source.url)
    with tempfile.TemporaryDirectory(prefix="remote-") as scratch:
        begin, own = time.perf_counter(), time.process_time()
        first_s, samples, others = 0.0, 0, 0.0
        for number, size in enumerate(arm(source, Path(scratch))(-1 if resume else 0)):
            first_s = first_s or time.perf_counter() - begin
            samples += size
            if number % 20 == 0:
                others = max(others, cpu_of_children(but=server))
        whole_s, own = time.perf_counter() - begin, time.process_time() - own
        return Measured(samples, first_s, whole_s, counted(source.url), own, others)


def cpu_of_children(but: int) -> float:
    """CPU seconds of the processes that this one has started, so far."""
    total = 0.0
    for child in psutil.Process(os.getpid()).children(recursive=True):
        if child.pid != but:
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
    return total


def counted(url: str) -> int:
    with urllib.request.urlopen(url + COUNTS) as answer:
        return sum(json.load(answer).values())


def arms(windows: Sequence[int], epochs: int) -> dict[str, Callable[[Source, Path], Batches]]:
    """Ours from a folder, and by HTTP and S3 with windows of so many shards; the others."""
    found: dict[str, Callable[[Source, Path], Batches]] = {
        "mmsa, local folder": lambda source, _: ours(str(source.shards), None, windows[0], epochs)
    }
    for window in windows:
        places = {"HTTP": "{url}/" + f"{BUCKET}/set", "S3": f"s3://{BUCKET}/set"}
        for kind, place in places.items():
            found[f"mmsa, {kind}, {window} shards"] = partial(from_a_store, place, window, epochs)
    return found | {name: peer.read for name, peer in installed().items()}


def from_a_store(place: str, window: int, epochs: int, source: Source, scratch: Path) -> Batches:
    return ours(place.format(url=source.url), scratch / "cache", window, epochs)


def ours(location: str, cache: Path | None, window: int, epochs: int = 1) -> Batches:
    """As training reads: the order of an epoch, and the downloader where there is a cache."""
    from mmsa.data.batch_requests import TrainRequests
    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.reader import SplitReader
    from mmsa.data.shard_needs import start_downloads
    from mmsa.data.storage.settings import CacheSettings, use_cache
    from mmsa.labels import class_map
    from mmsa.process.runtime import World

    def batches(first: int) -> Iterator[int]:
        use_cache(CacheSettings(cache, run="benchmark" if cache else None))
        manifest = load_manifest(location)
        reader = SplitReader(location, manifest, "train", class_map(manifest.classes, None))
        plan = batch_plan(
            len(reader),
            global_batch_size=BATCH_SIZE,
            micro_batch_size=BATCH_SIZE,
            world_size=1,
            drop_last=False,
        )
        steps = plan.steps_per_epoch
        start = steps // 2 if first else 0
        stop = epochs * steps
        requests = TrainRequests(reader, plan, 0, 0, window, True, start, stop)
        downloads = start_downloads(requests, None, World(), 1)
        for request in requests():
            places = zip(request.shards.tolist(), request.ordinals.tolist(), strict=True)
            yield decoded(bytes(sample.image) for sample in reader.read_all(list(places)))
        if downloads is not None:
            downloads.close()

    return batches


if __name__ == "__main__":
    main()
