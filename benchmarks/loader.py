"""Our loader compared with its peers: from real JPEGs to a collated uint8 training batch of 32.

    python -m benchmarks.loader [--raw DIR] [--shards DIR] [--images N] [--passes N]
                                [--resize-px N] [--tokenizer NAME] [--json FILE]
                                [--peers-finish their-way|by-ours]

One thread, no loader workers, random crop to 224 px and flip, padded token ids. The images are
those of --raw (MVSA-Single's layout) or synthetic, packed at short side 256 unless --shards names
packed data. All loaders run in this process and alternate, one pass over the training split each.
The result is the median pass in CPU milliseconds per sample. The seed-style loader reads the
original files. The peers (loader_peers.py) decode with our function, and do the rest their own way
or with our functions (--peers-finish by-ours), so that only reading differs. Peers that are not
installed are listed with the package to install.

Then follow the share of each of our stages, the wall time of two workers against none, and the time
to the first batch. Wall times need an otherwise idle machine.
"""

from __future__ import annotations

import os

# One thread, in every library, and before any of them is imported.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _variable in ("HF_HUB_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "DO_NOT_TRACK"):
    os.environ.setdefault(_variable, "1")

import argparse  # noqa: E402
import importlib.metadata  # noqa: E402
import platform  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.loader_peers import Batches, missing, peers, seed_style  # noqa: E402
from benchmarks.loader_setup import BATCH_SIZE, Setup  # noqa: E402
from benchmarks.results import machine, write_json  # noqa: E402

SEED_STYLE, OURS = "seed-style", "ours"
_PACKAGES = (
    *("torch", "simplejpeg", "pillow", "tokenizers", "webdataset"),
    *("datasets", "litdata", "mosaicml-streaming"),
)


def side_by_side(setup: Setup, scratch: Path, num_passes: int) -> dict[str, list[float]]:
    """CPU milliseconds per sample of each pass of each loader; the loaders alternate."""
    loaders: dict[str, Batches] = {
        SEED_STYLE: seed_style(setup),
        OURS: lambda: setup.loader(setup.requests(1)),
        **peers(setup, scratch),
    }
    figures: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(num_passes + 1):
        for name, batches in loaders.items():
            begin, num_samples = time.process_time(), 0
            for batch in batches():
                num_samples += len(batch["labels"])
            cpu_s = time.process_time() - begin
            if number:  # the first pass fills caches
                assert num_samples == len(setup.samples), (name, num_samples)
                figures[name].append(1000 * cpu_s / num_samples)
    return figures


class Stopwatch:
    """CPU time by name; a call's time does not include timed calls inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is added under `name`."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            begin = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                cpu_s = time.process_time() - begin
                self.spent[name] = self.spent.get(name, 0.0) + cpu_s - self._inner.pop()
                if self._inner:
                    self._inner[-1] += cpu_s

        return call


def by_stage(setup: Setup) -> dict[str, float]:
    """CPU milliseconds per sample of each of our stages, over two epochs."""
    from mmsa.data import reader as reading
    from mmsa.data.decoding import image_views

    watch, source = Stopwatch(), setup.requests(2)

    def requests(worker: int, num_workers: int) -> Iterator[Any]:
        items = source(worker, num_workers)
        next_item = watch.timed("plan", lambda: next(items, None))
        return iter(next_item, None)

    reader = SimpleNamespace(read_all=watch.timed("read", source.reader.read_all))
    kept = (image_views.decode, image_views.training_view, setup.tokenizer, reading.crc32)
    reading.crc32 = watch.timed("checksum", reading.crc32)
    image_views.decode = watch.timed("decode", image_views.decode)
    image_views.training_view = watch.timed("augment (crop, flip)", image_views.training_view)
    setup.tokenizer = watch.timed("tokenize", setup.tokenizer)
    try:
        share = _Requests(requests, reader)
        loader = setup.loader(share)
        take = watch.timed("collate", lambda: next(loader, None))
        for _ in range(3):  # imports, caches
            take()
        watch.spent.clear()
        num_samples = sum(len(batch["keys"]) for batch in iter(take, None))
    finally:
        image_views.decode, image_views.training_view, setup.tokenizer, reading.crc32 = kept
    return {name: 1000 * cpu_s / num_samples for name, cpu_s in watch.spent.items()}


class _Requests:
    """Requests as a loader takes them, with another reader."""

    def __init__(self, requests: Callable[..., Any], reader: Any) -> None:
        self.reader, self._requests = reader, requests

    def __call__(self, worker: int, num_workers: int) -> Iterator[Any]:
        return self._requests(worker, num_workers)


def workers_against_none(setup: Setup, rounds: int, num_batches: int = 20) -> dict[str, float]:
    """Batches per second (wall time) without and with two workers, medians of alternating turns."""
    from mmsa.data.loading.workers import AHEAD

    needed = rounds * (num_batches + 2 * AHEAD) + 4 * AHEAD
    num_epochs = -(-needed * BATCH_SIZE // len(setup.samples)) + 1
    loaders = {n: setup.loader(setup.requests(num_epochs), n) for n in (0, 2)}
    found: dict[int, list[float]] = {0: [], 2: []}
    for _ in range(rounds):
        for num_workers, loader in loaders.items():
            for _ in range(2 * AHEAD):  # batches that workers made during the other's turn
                next(loader)
            begin = time.perf_counter()
            for _ in range(num_batches):
                next(loader)
            found[num_workers].append(num_batches / (time.perf_counter() - begin))
    times = [with_two / without for with_two, without in zip(found[2], found[0], strict=True)]
    return {"none": median(found[0]), "two": median(found[2]), "times": median(times)}


def first_batch(setup: Setup) -> dict[str, float]:
    """Seconds of wall time from a started process to the first batch, without workers."""
    begin = time.perf_counter()
    reader = setup.opened()
    opened = time.perf_counter()
    batch = next(setup.loader(setup.requests(1, reader)))
    assert len(batch["keys"]) == BATCH_SIZE
    return {"manifest_s": opened - begin, "loader_s": time.perf_counter() - opened}


def packed(raw: Path, shards: Path) -> None:
    """Pack `raw` as `python -m shards pack` does, at short side 256."""
    command = [sys.executable, "-m", "shards", "pack", "mvsa-single", str(raw), str(shards)]
    subprocess.run([*command, "--protocol", "random", "--quiet"], check=True)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures; `folder` is an empty directory."""
    import torch

    from benchmarks.packing import make_raw

    torch.set_num_threads(1)
    raw = arguments.raw or folder / "raw"
    if arguments.raw is None:
        make_raw(raw, arguments.images)
    shards = arguments.shards or folder / "shards"
    if arguments.shards is None:
        packed(raw, shards)
    setup = Setup(
        raw, shards, arguments.resize_px, arguments.tokenizer, arguments.peers_finish == "by-ours"
    )
    scratch = folder / "peers"
    scratch.mkdir()
    first = first_batch(setup)
    return {
        "samples": len(setup.samples),
        "ms_per_sample": side_by_side(setup, scratch, arguments.passes),
        "stages_ms_per_sample": by_stage(setup),
        "workers": workers_against_none(setup, arguments.passes),
        "first_batch": first,
        "load": os.getloadavg()[0],
    }


def show(figures: dict[str, Any]) -> None:
    """The tables."""
    from rich.console import Console
    from rich.table import Table

    passes = {name: median(values) for name, values in figures["ms_per_sample"].items()}
    console = Console()
    table = Table(title=f"{figures['samples']} samples, batch {BATCH_SIZE}, one thread, CPU time")
    table.add_column("loader")
    for column in ("ms per sample", "least", "seed-style / this", "this / ours"):
        table.add_column(column, justify="right")
    for name, milliseconds in sorted(passes.items(), key=lambda item: -item[1]):
        least = min(figures["ms_per_sample"][name])
        ratios = (passes[SEED_STYLE] / milliseconds, milliseconds / passes[OURS])
        table.add_row(name, f"{milliseconds:.3f}", f"{least:.3f}", *(f"{r:.2f}" for r in ratios))
    console.print(table)
    for name, package in missing().items():
        print(f"{name} needs {package}, which is not installed: docs/benchmarks.md, Loader")
    stages = figures["stages_ms_per_sample"]
    total = sum(stages.values())
    table = Table(title="ours, by stage, CPU time")
    table.add_column("stage")
    for column in ("ms per sample", "share"):
        table.add_column(column, justify="right")
    for name, milliseconds in stages.items():
        table.add_row(name, f"{milliseconds:.4f}", f"{milliseconds / total:.0%}")
    table.add_row("all", f"{total:.4f}", "100%")
    console.print(table)
    workers, first = figures["workers"], figures["first_batch"]
    print(
        f"two workers against none, wall time: {workers['times']:.2f} times as fast "
        f"({workers['two']:.1f} and {workers['none']:.1f} batches/s); load {figures['load']:.1f}"
    )
    print(
        f"first batch after {sum(first.values()):.3f} s "
        f"(manifest {first['manifest_s']:.3f}, loader {first['loader_s']:.3f})"
    )


def versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--raw", type=Path, help="a raw set in MVSA-Single's layout")
    parser.add_argument("--shards", type=Path, help="the same data, packed at short side 256")
    parser.add_argument(
        "--images", type=int, default=1500, help="number of synthetic images without --raw"
    )
    parser.add_argument(
        "--passes", type=int, default=5, help="timed passes over the training split"
    )
    parser.add_argument(
        "--resize-px", type=int, default=256, help="short side in pixels before the crop"
    )
    parser.add_argument("--tokenizer", help="name or directory; default: learned from the texts")
    parser.add_argument(
        "--peers-finish",
        choices=("their-way", "by-ours"),
        default="their-way",
        help="after decoding: torchvision, Hugging Face's batch call and a stack, or our functions",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.shards and not arguments.raw:
        parser.error("--shards also needs --raw, the original files that it was packed from")
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments, Path(folder))
    show(figures)
    content = {"versions": versions(), "batch_size": BATCH_SIZE, **figures}
    write_json(arguments.json, {**machine(), **content})


if __name__ == "__main__":
    main()
