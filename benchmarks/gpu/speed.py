"""Stages: how fast is the step, what makes it so, and how much of the device does it use?"""

from __future__ import annotations

import json
import statistics
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks import real_run, results
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.outcome import Failed, NotRun, Outcome

Row = dict[str, Any]
BASELINE = "baseline"
# Each is one change of the baseline. The last one has a process of its own: compiling may hang.
CHANGES: tuple[Row, ...] = (
    {"name": "attention also cuDNN's", "settings": ["gpu.attention=[cudnn,flash,efficient,math]"]},
    {"name": "texts not packed", "settings": ["gpu.packing=off"]},
    {"name": "texts packed under a mask", "settings": ["gpu.packing=mask"]},
    {"name": "lengths not padded to 8", "settings": ["gpu.pad_tokens_to=1"]},
    {"name": "no cudnn_benchmark", "settings": ["gpu.cudnn_benchmark=false"]},
    {"name": "gradients not in buckets", "bucket_view": False},
    {"name": "no copy stream", "settings": ["gpu.copy_stream=false"]},
    {"name": "not bucketed by length", "settings": ["data.bucket_by_length=false"]},
    {"name": "TF32", "settings": ["train.mixed_precision=tf32"]},
    {"name": "float32", "settings": ["train.mixed_precision=no"]},
    {"name": "one batch in memory", "in_memory": True},
)
COMPILED: Row = {"name": "torch.compile", "settings": ["train.compile=true"]}
TF32_NEEDS_GPU = "TF32"


def arm(bench: Bench, name: str, *, batch: int = 0, workers: int = -1, **change: Any) -> Row:
    """The baseline, bf16 under DDP, with one change."""
    batch = batch or (8 if bench.tiny else 256)
    workers = workers if workers >= 0 else (0 if bench.tiny else 8)
    settings = [
        *bench.settings(bench.fast_size, "to be given"),
        *[f"train.global_batch_size={batch}", f"train.micro_batch_size={batch}"],
        *[f"data.num_workers={workers}", "train.mixed_precision=bf16"],
    ]
    return {**change, "name": name, "settings": [*settings, *change.get("settings", [])]}


def measure(
    bench: Bench, arms: list[Row], engine: str = "ddp", processes: int = 1, limit_s: float = 400.0
) -> list[Row]:
    """The rows of `steps.timed_arms`, with the FLOPs of each, counted after all."""
    seconds, warm_s = (bench.seconds, 0.1) if bench.tiny else (bench.seconds, 12.0)
    asked: Row = {"arms": arms, "seconds": seconds, "warm_s": warm_s, "limit_s": limit_s}
    rows: list[Row] = bench.child("arms", engine, processes, **asked)
    for row in rows:
        if "failed" not in row:  # counted here: ZeRO-3 would partition the model that is counted
            shapes = row.pop("shapes")
            gflop = sum(real_run.gflop_of(bench.fast_size, *shape) for shape in shapes)
            row["tflops"] = row["world"] * gflop / row["seconds"] / 1e3
    return rows


def table(rows: list[Row], peak_tflops: float | None = None) -> str:
    """A row for each arm, compared with the mean of the baselines among them."""
    base = [one["samples_per_s"] for one in rows if one["name"] == BASELINE and "failed" not in one]
    headings = ["", "batch", "workers", "samples/s", "against baseline", "ms/step"]
    headings += ["waiting for data", "TFLOP/s", "of the peak", "MiB", "new shapes"]
    cells = []
    for row in rows:
        if "failed" in row:
            cells.append([row["name"], *[""] * 2, row["failed"], *[""] * 7])
            continue
        per_s = row["samples_per_s"]
        share = row["tflops"] / peak_tflops if peak_tflops and _is_bf16(row) else None
        cells.append(
            [
                *[row["name"], row["batch"], row["workers"], f"{per_s:.0f}"],
                f"{per_s / statistics.mean(base):.2f}" if base else "",
                *[f"{row['ms_per_step']:.1f}", f"{row['waiting']:.0%}", f"{row['tflops']:.1f}"],
                "" if share is None else f"{share:.0%}",
                *[f"{row['memory_mib']:.0f}", row["new_shapes"]],
            ]
        )
    return results.markdown(headings, cells)


def _is_bf16(row: Row) -> bool:
    return row["precision"] in (None, "bf16")


def _tell(outcome: Outcome, rows: list[Row], peak_tflops: float | None = None) -> None:
    """Each row in a finding; those that failed are failures, but for a lack of memory."""
    outcome.figures["rows"] = [*outcome.figures.get("rows", []), *rows]
    outcome.table = table(outcome.figures["rows"], peak_tflops)
    for row in rows:
        failed = row.get("failed", "")
        if failed == "out of memory":
            outcome.measured(row["name"], failed)
        elif failed:
            outcome.check(row["name"], False, failed)
        else:
            said = f"{row['samples_per_s']:.0f} samples/s, {row['waiting']:.0%} waiting for data"
            outcome.measured(row["name"], said)


def changes(bench: Bench, outcome: Outcome) -> None:
    """One change at a time, between two baselines on the warm device."""
    wanted = [one for one in CHANGES if bench.on_gpu or one["name"] != TF32_NEEDS_GPU]
    if bench.in_process:
        wanted = [one for one in wanted if one["name"] in ("float32", "one batch in memory")]
    peak = real_peak(bench, outcome)
    arms = [arm(bench, BASELINE), *[arm(bench, **one) for one in wanted], arm(bench, BASELINE)]
    _tell(outcome, measure(bench, arms), peak)
    if bench.tiny:
        outcome.not_run(COMPILED["name"], "compiling takes minutes without a GPU")
    else:
        _tell(outcome, measure(bench, [arm(bench, **COMPILED)], limit_s=240.0), peak)
    if not bench.on_gpu:
        outcome.not_run(TF32_NEEDS_GPU, "needs a GPU")


def real_peak(bench: Bench, outcome: Outcome) -> float:
    """TFLOP/s of matrix products in bf16 on this device, measured in a process of its own."""
    side = 128 if bench.tiny else None
    gflops: float = bench.child(
        "peak", "single", precision="bf16", side=side, seconds=0.1 if bench.tiny else 1.5
    )
    outcome.measured("peak", f"{gflops / 1e3:.2f} TFLOP/s in bf16 products of square matrices")
    outcome.figures["peak_tflops"] = gflops / 1e3
    return gflops / 1e3


def batches(bench: Bench, outcome: Outcome) -> None:
    """Batch sizes up to the memory limit."""
    sizes = (4, 8) if bench.tiny else (32, 64, 128, 256, 512, 1024)
    arms = [arm(bench, f"batch {size}", batch=size) for size in sizes]
    _tell(outcome, measure(bench, arms), real_peak(bench, outcome))


def workers(bench: Bench, outcome: Outcome) -> None:
    """Loader processes: how many keep the device busy?"""
    numbers = (0,) if bench.in_process else (0, 1) if bench.tiny else (2, 4, 8, 12)
    _tell(outcome, measure(bench, [arm(bench, f"{one} workers", workers=one) for one in numbers]))


def engines(bench: Bench, outcome: Outcome) -> None:
    """The same step under each engine, of one process."""
    for engine in ("ddp",) if bench.in_process else ("single", "ddp", "zero2", "zero3"):
        with outcome.asking(engine):
            _tell(outcome, measure(bench, [arm(bench, engine)], engine))


def peers(bench: Bench, outcome: Outcome) -> None:
    """The step against the loop of Accelerate's examples and Lightning's Trainer."""
    if bench.in_process:
        raise NotRun("needs processes of its own")
    arms = ["accelerate", "ours"]
    if find_spec("lightning"):
        arms.insert(1, "lightning")
    else:
        outcome.not_run("lightning", "is not installed")
    micro = 16 if bench.tiny else 128
    file = bench.out / "peers.json"
    command = [sys.executable, "-m", "benchmarks.step", "--size", bench.fast_size, "--arms", *arms]
    command += ["--batches", str(micro), "--micro", str(micro), "--shards", bench.shards()]
    command += ["--json", str(file), "--steps", "2" if bench.tiny else "8"]
    command += ["--tokenizer", "words:500" if bench.tiny else "words:30000"]
    command += ["--precision", "no" if bench.tiny else "bf16"]
    ended = bench.run(command, limit_s=300.0)
    if ended.returncode != 0:
        raise Failed(ended.stderr[-300:])
    rows = json.loads(file.read_text())["rows"]
    outcome.figures["rows"] = rows
    base = rows[0]["samples_per_s"]
    for row in rows:
        per_s = row["samples_per_s"]
        said = f"{per_s:.1f} samples/s, {per_s / base:.2f} of Accelerate's"
        outcome.measured(row["arm"], f"{said}, {row['of_peak']:.0%} of the peak")


def checkpoint(bench: Bench, outcome: Outcome) -> None:
    """How long a checkpoint holds training up, against a plain write of the same numbers."""
    kinds = {"written at once": "false", "written by a thread": "true"}
    arms = [
        arm(bench, name, settings=[f"train.checkpoint_in_background={value}"])
        for name, value in kinds.items()
    ]
    rows = bench.child("checkpoints", arms=arms, repeats=2 if bench.tiny else 4)
    outcome.figures["rows"] = rows
    for row in rows:
        stall = statistics.median(row["stalls"])
        said = f"{stall:.2f} s of {row['mib']:.0f} MiB, {stall / row['plain_s']:.2f} of torch.save"
        outcome.measured(row["name"], said)


def trace(bench: Bench, outcome: Outcome) -> None:
    """The ten kernels that take longest, and the share of time without any."""
    steps = 1 if bench.tiny else 5
    file = str(bench.out / "trace.json.gz")
    settings = arm(bench, "")["settings"]
    found = bench.child("trace", settings=settings, warm=steps + 4, steps=steps, file=file)
    outcome.figures = found
    names = "kernel" if found["on_gpu"] else "operation"
    rows = [
        [
            one["name"][:90].replace("|", "/"),
            f"{one['ms_per_step']:.2f}",
            f"{one['times_per_step']:.0f}",
        ]
        for one in found["top"]
    ]
    outcome.table = results.markdown([names, "ms a step", "times a step"], rows)
    idle = f"{found['idle']:.0%} of {found['ms_per_step']:.1f} ms without any {names}"
    if found["on_gpu"]:
        outcome.measured("idle", idle)
    else:
        outcome.not_run("idle", f"needs a GPU ({idle} here)")
