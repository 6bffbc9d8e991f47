"""How fast packing is: JPEGs of 600x450 to short side 256, compared with simpler programs.

    python -m benchmarks.packing [--images N] [--raw DIR] [--json FILE]
    python -m benchmarks.packing --rows 10000 100000 1000000 [--json FILE]

The second form measures the search for duplicates alone (benchmarks/duplicates.py). The first:

The raw set is made up (noise and edges, in size and bytes like posted images) unless --raw names
one in MVSA-Single's layout. Reports wall time, CPU time of all processes, and images per second;
the machine should be otherwise idle. Rows:

    tar cf                  the raw images, nothing decoded
    plain ShardWriter       one process: Pillow, bicubic, the same JPEG quality, wds.ShardWriter
    chunks, best            one core making chunks of 128 (decode, resize, encode, perceptual hash):
    chunks, median          the best chunk, which other load disturbs least, and the median
    pack, N workers         `python -m shards pack`, start-up included

Two workers are compared with one in wall time and, for a machine with other load, in CPU seconds:
two free cores would take those of the serial part (the command itself, the import of torch into the
fork server) plus half of the rest.

Then the quality: PSNR of the packed images against a full decode and Pillow's own filters.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_json

# One thread per process, because processes are compared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SIZE = (600, 450)
SHORT_SIDE_PX, QUALITY = 256, 90
_DISTINCT = 64  # made-up images; more would take longer than the measurement


def make_raw(directory: Path, count: int) -> None:
    """A raw set of `count` pairs in MVSA-Single's layout, of about 41 kB an image."""
    import numpy as np
    from PIL import Image

    data = directory / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for _ in range(_DISTINCT):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
        noise = rng.normal(0, 7, (*smooth.shape[:2], 1))
        buffer = io.BytesIO()
        noisy = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer, "JPEG", quality=75)
        images.append(buffer.getvalue())
    labels = ("positive", "neutral", "negative")
    lines = ["ID\ttext,image"]
    for number in range(count):
        # Bytes after the end of the image make each file distinct.
        (data / f"{number}.jpg").write_bytes(images[number % _DISTINCT])
        (data / f"{number}.txt").write_text(f"text of sample {number} with some more words\r\n")
        label = labels[number % 3]
        lines.append(f"{number}\t{label},{label}")
    (directory / "labelResultAll.txt").write_text("\r\n".join(lines) + "\r\n")


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants (Linux): a fork server ends after
    the command that started it, and its workers' CPU time would be lost."""
    set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process and its finished children) of `work`."""
    wall, cpu = time.perf_counter(), os.times()
    work()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(cpu[:4])


def tar_cf(raw: Path, out: Path) -> None:
    subprocess.run(["tar", "cf", str(out), "-C", str(raw), "data"], check=True)


def plain_shard_writer(raw: Path, out: Path) -> None:
    """The obvious ten lines: full decode, bicubic, ShardWriter with its defaults."""
    import webdataset as wds
    from PIL import Image

    with wds.ShardWriter(str(out / "%05d.tar"), maxcount=1000, verbose=0) as writer:
        for path in sorted((raw / "data").glob("*.jpg")):
            image = Image.open(path).convert("RGB")
            scale = SHORT_SIDE_PX / min(image.size)
            if scale < 1:
                size = (round(image.width * scale), round(image.height * scale))
                image = image.resize(size, Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=QUALITY)
            text = path.with_suffix(".txt").read_bytes().decode("gb18030")
            writer.write({"__key__": path.stem, "jpg": buffer.getvalue(), "txt": text, "json": {}})


def packed(raw: Path, out: Path, workers: int) -> float:
    """Pack `raw`; returns the CPU seconds of the command's own process."""
    command = [sys.executable, "-m", "shards", "pack", "mvsa-single", str(raw), str(out)]
    options = ["--workers", str(workers), "--quiet", "--protocol", "random"]
    process = subprocess.Popen([*command, *options])
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, status
    return used.ru_utime + used.ru_stime


def chunk_times(raw: Path, out: Path) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of each of several chunks, made in this process by one thread."""
    import torch

    from shards.example import Example
    from shards.packing.chunks import CHUNK_EXAMPLES, ChunkTask, make_chunk
    from shards.packing.settings import ImageForm
    from shards.sources import get_source

    torch.set_num_threads(1)
    items = [i for i in get_source("mvsa-single").open_raw(raw).items if isinstance(i, Example)]
    tasks = [
        ChunkTask(str(out), number, items[start : start + CHUNK_EXAMPLES], ImageForm(), "")
        for number, start in enumerate(range(0, len(items) - CHUNK_EXAMPLES, CHUNK_EXAMPLES))
    ]
    return [timed(lambda t=task: make_chunk(t)) for task in tasks][1:]  # type: ignore[misc]


def quality(contents: list[bytes]) -> dict[str, float]:
    """Mean and least PSNR in dB of the packed pixels and of the packed JPEG against references.

    The references are full decodes, resized with Pillow's Lanczos and bicubic filters.
    """
    import numpy as np
    from PIL import Image

    from mmsa.data.decoding.packed_form import pack_image

    def psnr(one: Any, other: Any) -> float:
        error = ((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2).mean()
        return float(10 * np.log10(255**2 / max(error, 1e-6)))

    found: dict[str, list[float]] = {}
    for content in contents:
        packed_image = pack_image(content, short_side_px=SHORT_SIDE_PX, quality=QUALITY)
        original = Image.open(io.BytesIO(content)).convert("RGB")
        if min(original.size) <= SHORT_SIDE_PX:
            continue
        for name in ("LANCZOS", "BICUBIC"):
            size = (packed_image.width, packed_image.height)
            reference = original.resize(size, Image.Resampling[name])
            found.setdefault(f"pixels, {name.lower()}", []).append(
                psnr(packed_image.pixels, reference)
            )
            jpeg = Image.open(io.BytesIO(packed_image.jpeg))
            found.setdefault(f"after JPEG, {name.lower()}", []).append(psnr(jpeg, reference))
    figures = {}
    for name, values in found.items():
        figures[f"{name}, mean"], figures[f"{name}, least"] = float(np.mean(values)), min(values)
    return figures


def run(raw: Path, scratch: Path) -> dict[str, Any]:
    """All figures for the raw set `raw`; `scratch` is an empty directory."""
    paths = sorted((raw / "data").glob("*.jpg"))
    contents = [path.read_bytes() for path in paths[:400]]
    (scratch / "plain").mkdir()
    (scratch / "chunks").mkdir()
    plain_shard_writer_imports()
    rows: dict[str, tuple[int, float, float]] = {}

    def add(name: str, count: int, work: Callable[[], object]) -> None:
        rows[name] = (count, *timed(work))

    add("tar cf", len(paths), lambda: tar_cf(raw, scratch / "raw.tar"))
    add("plain ShardWriter", len(paths), lambda: plain_shard_writer(raw, scratch / "plain"))
    chunks = sorted(chunk_times(raw, scratch / "chunks"), key=lambda times: times[1])
    rows["chunks, best"] = (128, *chunks[0])
    rows["chunks, median"] = (128, *chunks[len(chunks) // 2])
    alone_s = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))[1]

    def pack_by_two() -> None:
        nonlocal alone_s
        alone_s += packed(raw, scratch / "out-2", 2)

    add("pack, workers 1", len(paths), lambda: packed(raw, scratch / "out-1", 1))
    add("pack, workers 2", len(paths), pack_by_two)
    one_s, two_s = rows["pack, workers 1"], rows["pack, workers 2"]
    return {
        "rows": {
            name: {
                "images": count,
                "wall_s": round(wall, 3),
                "cpu_s": round(cpu, 3),
                "images_per_s": round(count / wall, 1),
                "images_per_cpu_s": round(count / cpu, 1),
            }
            for name, (count, wall, cpu) in rows.items()
        },
        "alone_cpu_s": round(alone_s, 2),
        "speedup_of_two_workers": round(one_s[1] / two_s[1], 2),
        "speedup_by_cpu": round(one_s[2] / (alone_s + (two_s[2] - alone_s) / 2), 2),
        "psnr_db": {name: round(value, 1) for name, value in quality(contents).items()},
    }


def plain_shard_writer_imports() -> None:
    """Import what the plain writer needs, so that its row does not include imports."""
    import PIL.Image  # noqa: F401
    import webdataset  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000, help="number of made-up images")
    parser.add_argument("--raw", type=Path, help="a raw set in MVSA-Single's layout instead")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rows", type=int, nargs="+", help="search so many for duplicates instead")
    arguments = parser.parse_args()
    if arguments.rows:
        write_json(arguments.json, {**machine(), "duplicates": search(sorted(arguments.rows))})
        return
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or Path(folder, "raw")
        if arguments.raw is None:
            make_raw(raw, arguments.images)
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        figures = run(raw, scratch)
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"packing to short side {SHORT_SIDE_PX}, quality {QUALITY}")
    table.add_column("")
    for column in ("images", "wall s", "CPU s", "images/s", "images/CPU s"):
        table.add_column(column, justify="right")
    for name, row in figures["rows"].items():
        table.add_row(name, *(f"{value:,}" for value in row.values()))
    console = Console()
    console.print(table)
    console.print(
        f"two workers: {figures['speedup_of_two_workers']} times one in wall time, load {load()}; "
        f"{figures['speedup_by_cpu']} times in CPU time, {figures['alone_cpu_s']} s of it serial"
    )
    for name, value in figures["psnr_db"].items():
        console.print(f"PSNR, {name}: {value} dB")
    write_json(arguments.json, {**machine(), **figures})


def search(counts: list[int]) -> list[dict[str, Any]]:
    """Measure the search for duplicates with so many samples, and print what was measured."""
    from benchmarks.duplicates import measured

    figures = []
    for count in counts:
        figures.append(measured(count))
        print(", ".join(f"{name} {value}" for name, value in figures[-1].items()), flush=True)
    return figures


def load() -> str:
    """The machine's load over the last minute, at the end of the run."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
