"""Shards from a server, beside webdataset and Hugging Face datasets over HTTP: one epoch each.

    python -m benchmarks.remote SHARDS [--latency-ms 20] [--megabytes-per-s 50]

A server in a process of its own answers with this latency and shares this bandwidth among its
connections. Every arm reads the same tars in one process, decodes every image with our function
and counts its samples; bytes are counted by the server. `resume` is what the second half of an
epoch costs a process that starts there, until its first batch and in bytes: a stream without
positions reads the first half again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shard_server import COUNTS, ShardServer

BATCH_SIZE, SHUFFLE_BUFFER = 32, 1000


@dataclass(frozen=True)
class Measured:
    """Of one arm: samples, seconds to the first batch and to the end, bytes that were sent."""

    samples: int
    first_s: float
    whole_s: float
    sent: int


Batches = Callable[[int], Iterator[int]]  # first batch -> the number of samples of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--megabytes-per-s", type=float, default=50)
    parser.add_argument("--window-shards", type=int, default=16)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    with server(arguments) as url:
        next(ours(str(arguments.shards), None, arguments.window_shards)(0))  # all imports
        for turn in range(arguments.turns):
            for name, arm in arms(arguments.shards, url, arguments.window_shards).items():
                for what in ("epoch", "resume"):
                    found = measured(arm, url, what == "resume")
                    print(
                        f"{turn} {name:24} {what:7} {found.samples:6} samples  "
                        f"{found.samples / found.whole_s:7.0f} a second  "
                        f"first batch {found.first_s:6.2f} s  whole {found.whole_s:6.2f} s  "
                        f"{found.sent / 1e6:7.1f} MB",
                        flush=True,
                    )


def serve(arguments: argparse.Namespace) -> None:
    """The server's process: until its standard input ends."""
    started = ShardServer(arguments.shards, latency_s=arguments.latency_ms / 1000)
    started.bytes_per_s = arguments.megabytes_per_s * 1e6
    print(started.url, flush=True)
    sys.stdin.read()
    started.close()


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.remote", *sys.argv[1:], "--serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def measured(arm: Callable[[Path], Batches], url: str, resume: bool) -> Measured:
    """One cold start of an arm, from nothing to its last batch."""
    counted(url)
    with tempfile.TemporaryDirectory(prefix="remote-") as scratch:
        begin = time.perf_counter()
        first_s, samples = 0.0, 0
        batches = arm(Path(scratch))
        for number in batches(-1 if resume else 0):
            first_s = first_s or time.perf_counter() - begin
            samples += number
        return Measured(samples, first_s, time.perf_counter() - begin, counted(url))


def counted(url: str) -> int:
    with urllib.request.urlopen(url + COUNTS) as answer:
        return sum(json.load(answer).values())


def arms(shards: Path, url: str, window: int) -> dict[str, Callable[[Path], Batches]]:
    found: dict[str, Callable[[Path], Batches]] = {
        "mmsa, local folder": lambda scratch: ours(str(shards), None, window),
        "mmsa, HTTP": lambda scratch: ours(url, scratch / "cache", window),
        "webdataset, HTTP": lambda scratch: webdataset(shards, url),
    }
    try:
        import datasets  # noqa: F401
    except ImportError:
        return found
    return {**found, "datasets, HTTP": lambda scratch: hugging_face(shards, url, scratch)}


def ours(location: str, cache: Path | None, window: int) -> Batches:
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
        requests = TrainRequests(reader, plan, 0, 0, window, True, start, steps)
        downloads = start_downloads(requests, None, World(), 1)
        for request in requests():
            places = zip(request.shards.tolist(), request.ordinals.tolist(), strict=True)
            yield decoded(bytes(sample.image) for sample in reader.read_all(list(places)))
        if downloads is not None:
            downloads.close()

    return batches


def tars(shards: Path, url: str) -> tuple[list[str], int]:
    """The URLs of the training split's tars, and its samples."""
    from mmsa.data.manifest import load_manifest

    split = load_manifest(shards).splits["train"]
    return [f"{url}/{shard.tar}" for shard in split.shards], split.num_samples


def webdataset(shards: Path, url: str) -> Batches:
    """Its own pipeline over the same tars by their URLs, shuffled as its examples do."""
    import webdataset as wds

    def batches(first: int) -> Iterator[int]:
        places, samples = tars(shards, url)
        dataset = (
            wds.WebDataset(places, shardshuffle=len(places), seed=0)
            .shuffle(SHUFFLE_BUFFER)
            .to_tuple("jpg", "txt", "json")
            .batched(BATCH_SIZE, collation_fn=list)
        )
        yield from second_half(
            ([row[0] for row in rows] for rows in dataset), samples if first else 0
        )

    return batches


def hugging_face(shards: Path, url: str, scratch: Path) -> Batches:
    """`load_dataset("webdataset", streaming=True)` over the same URLs."""
    import datasets

    def batches(first: int) -> Iterator[int]:
        places, samples = tars(shards, url)
        stream = datasets.load_dataset(
            "webdataset",
            data_files={"train": places},
            split="train",
            streaming=True,
            cache_dir=str(scratch),
        )
        stream = stream.cast_column("jpg", datasets.Image(decode=False))
        stream = stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
        rows = ([one["bytes"] for one in b["jpg"]] for b in stream.iter(batch_size=BATCH_SIZE))
        yield from second_half(rows, samples if first else 0)

    return batches


def second_half(batches: Iterator[list[bytes]], samples: int) -> Iterator[int]:
    """Decode and count; without decoding them, pass over the first half of `samples`."""
    seen = 0
    for contents in batches:
        seen += len(contents)
        if seen > samples // 2:
            yield decoded(iter(contents))


def decoded(contents: Iterator[Any]) -> int:
    """Decode every image; returns how many."""
    from mmsa.data.decoding import image_views

    return sum(image_views.decode(content) is not None for content in contents)


if __name__ == "__main__":
    main()
