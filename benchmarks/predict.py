"""What evaluation spends outside the forward passes, and what `python -m mmsa predict` gains.

    python -m benchmarks.predict EXPORT [--samples N] [--precision no|bf16] [--json FILE]
    python -m benchmarks.predict EXPORT --table FILE [--rows N] [--loop-rows N] [--json FILE]

Reads up to N samples of the validation split into memory, then predicts them with the real loop
(`predict_split`: copies to the device, keys, gathering, sorting). Reports CPU seconds of the loop
and of the forward passes inside it; on a GPU wall time, with the device synchronised after each.

With `--table` it repeats the rows of a table up to `--rows`, predicts them by the command, with its
start, and the first `--loop-rows` of them one by one, by `mmsa.load(EXPORT).predict([text],
[image])`. Reports wall and CPU time per row and the largest memory of a process of the command.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.real_run import clock
from benchmarks.results import write_json

REPEATS = 3


def ready(target: Path, num_samples: int) -> tuple[Any, list[Any], tuple[str, ...]]:
    """(model, batches of validation in memory, class names) of a run or an export."""
    from mmsa.data.batch_requests import EvaluationRequests
    from mmsa.data.manifest import load_manifest
    from mmsa.data.reader import SplitReader
    from mmsa.data.stream import Loader
    from mmsa.engines.gpu_texts import text_layout
    from mmsa.export import load_model, load_tokenizer_of, read_export
    from mmsa.export_target import resolve_export

    export = read_export(resolve_export(target, "best").directory)
    shards = str(export.config.data.shards)
    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, "val", export.class_map(manifest.classes))
    size = export.config.eval.batch_size
    requests = EvaluationRequests(reader, size, 1, 0)
    model = load_model(export)
    layout = text_layout(model, export.config.gpu)
    loader = Loader(requests, export.preprocessing, load_tokenizer_of(export), 0, layout=layout)
    batches = list(islice(loader, min(len(requests), max(1, num_samples // size))))
    return model, batches, export.label_names


def measure(target: Path, num_samples: int, precision: str) -> dict[str, float]:
    """Seconds of the loop and of its forward passes, and the rest as a share of the latter."""
    import torch

    from mmsa.engines import engine
    from mmsa.evaluation.predict import predict_split

    model, batches, names = ready(target, num_samples)
    accelerator = engine.make_accelerator(precision)
    torch.set_num_threads(1)
    model.to(accelerator.device)

    forward_s = [0.0]
    forward = model.forward

    def timed(*arguments: Any) -> Any:
        begin = clock()
        output = forward(*arguments)
        forward_s[0] += clock() - begin
        return output

    model.forward = timed
    count = sum(int(batch["num_real"]) for batch in batches)
    rows = []
    for _ in range(REPEATS + 1):
        forward_s[0], begin = 0.0, clock()
        predict_split(
            model, iter(batches), len(batches),
            accelerator=accelerator, label_names=names, num_samples=count,
        )  # fmt: skip
        rows.append((clock() - begin, forward_s[0]))
    loop_s, alone_s = (sum(column) / REPEATS for column in zip(*rows[1:], strict=True))
    return {
        "samples": count, "batches": len(batches), "loop_s": loop_s, "forward_s": alone_s,
        "share": loop_s / alone_s - 1,
    }  # fmt: skip


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of `act`; CPU time is that of this process and of all that have ended."""

    def cpu_s() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(used.ru_utime + used.ru_stime for used in both)

    wall, cpu = time.perf_counter(), cpu_s()
    act()
    return time.perf_counter() - wall, cpu_s() - cpu


def pairs_of(table: Path) -> list[tuple[str, Path]]:
    """(text, image file) of each row of a table whose columns have usual names."""
    from mmsa.raw_files.columns import USUAL_IMAGE, USUAL_TEXT, find_column
    from mmsa.raw_files.rows import cell_text, open_table

    opened = open_table(table)
    text, image = (
        find_column(opened, None, usual, what=what, flag="--table")
        for what, usual in (("text", USUAL_TEXT), ("image", USUAL_IMAGE))
    )
    return [
        (cell_text(row.cells[text]) or "", table.parent / str(row.cells[image]))
        for row in opened.rows()
        if row.problem is None
    ]


def measure_table(target: Path, table: Path, num_rows: int, loop_rows: int) -> dict[str, float]:
    """Seconds per row of the command and of a loop, and how many times as fast the command is."""
    import mmsa

    pairs = pairs_of(table)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "rows.csv", Path(folder) / "out.csv"
        with given.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "image"])
            rows.writerows(islice(cycle(pairs), num_rows))
        words = ["predict", str(target), str(given), "--out", str(out), "--quiet"]
        words += ["--num-workers", str(max(1, (os.cpu_count() or 1) - 1))]
        command = timed(lambda: subprocess.run([sys.executable, "-m", "mmsa", *words], check=True))
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    model = mmsa.load(target)
    first = list(islice(cycle(pairs), loop_rows))
    for text, image in first[:5]:
        model.predict([text], [image])
    loop = timed(lambda: [model.predict([text], [image]) for text, image in first])
    return {
        "rows": num_rows, "loop_rows": loop_rows,
        "command_ms": 1000 * command[0] / num_rows, "command_cpu_ms": 1000 * command[1] / num_rows,
        "loop_ms": 1000 * loop[0] / loop_rows, "loop_cpu_ms": 1000 * loop[1] / loop_rows,
        "times": loop[0] / loop_rows * num_rows / command[0], "peak_mib": peak_mib,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="run or export whose shards still exist")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--table", type=Path, help="measure the command on the rows of this table")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--loop-rows", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.table is not None:
        found = measure_table(
            arguments.target, arguments.table, arguments.rows, arguments.loop_rows
        )
        print(
            f"{found['rows']} rows by the command: {found['command_ms']:.2f} ms each "
            f"({found['command_cpu_ms']:.2f} ms of CPU), {found['peak_mib']:.0f} MiB; one by one: "
            f"{found['loop_ms']:.2f} ms ({found['loop_cpu_ms']:.2f}); {found['times']:.1f} times"
        )
        write_json(arguments.json, found)
        return
    found = measure(arguments.target, arguments.samples, arguments.precision)
    print(
        f"{found['samples']} samples in {found['batches']} batches: {found['loop_s']:.3f} s, "
        f"of which forward passes {found['forward_s']:.3f} s; the rest adds {found['share']:.2%}"
    )
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
