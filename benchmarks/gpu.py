"""One GPU: samples per second, FLOP utilisation, memory, time spent waiting for data; 8 minutes.

    python -m benchmarks.gpu [--json FILE] [--only GROUP ...] [--shards DIR]
    python -m benchmarks.gpu --tiny          the same code with tiny encoders, also on a CPU

Packs a made-up set, then runs the real step of BERT-base and ResNet-50 on the real stream, each arm
in its own process: batch sizes up to the memory limit, DDP, ZeRO-2 and ZeRO-3 at world size 1,
torch.compile, float32, loader workers 0 to 16. For comparison it prints the estimate on paper for
an H200: 7,760 samples/s, which is 40 % of 790 TFLOP/s at 32 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import real_run

ON_PAPER = 7760.0  # samples/s
MVSA_SINGLE = 4511  # pairs whose text and image labels do not contradict each other
GROUPS = ("batch", "engine", "compile", "precision", "workers")
ARM_LIMIT_S = 150.0


def arms(tiny: bool, workers: int) -> list[dict[str, Any]]:
    """Every arm with its group; settings that an arm does not change are those of the base."""
    base: dict[str, Any] = {"engine": "ddp", "precision": "bf16", "compile": False}
    base |= {"workers": 0 if tiny else workers, "batch": 16 if tiny else 256}
    changes: list[tuple[str, dict[str, Any]]] = []
    for batch in (16, 32) if tiny else (32, 64, 128, 256, 512, 1024):
        changes.append(("batch", {"batch": batch}))
    changes += [("engine", {"engine": "zero2"}), ("engine", {"engine": "zero3"})]
    changes += [("precision", {"precision": "no"})]
    if not tiny:  # a CPU has none
        changes += [("precision", {"precision": "tf32"})]
    if not tiny:  # on a CPU compiling alone takes minutes
        changes += [("compile", {"compile": True})]
    changes += [("workers", {"workers": number}) for number in ((1,) if tiny else (0, 2, 4, 8, 16))]
    return [{"group": group, **base, **change} for group, change in changes]


def timed(batches: Iterator[Any], spent: list[float]) -> Iterator[Any]:
    """`batches`, adding the seconds spent waiting for them to `spent[0]`."""
    while True:
        begin = time.perf_counter()
        batch = next(batches)
        spent[0] += time.perf_counter() - begin
        yield batch


def run_arm(arm: dict[str, Any], shards: str, size: str, seconds: float) -> dict[str, Any]:
    """Measure the real step for about `seconds` of wall time, device synchronised."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        settings = real_run.settings_of(size, shards, folder, "words:30000")
        settings += [f"train.micro_batch_size={arm['batch']}"]
        settings += [f"train.global_batch_size={arm['batch']}"]
        settings += [f"data.num_workers={arm['workers']}", f"train.compile={arm['compile']}"]
        config, run = real_run.start_run([*settings, f"train.mixed_precision={arm['precision']}"])
        waited, seen = [0.0], list[real_run.Shape]()
        run.loaders.train = timed(run.loaders.train, waited)
        real_run.note_shapes(run, seen)
        for _ in range(2 if size == "tiny" else 8):
            real_run.one_step(config, run)
        finish()
        waited[0] = 0.0
        seen.clear()
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            for _ in range(1 if size == "tiny" else 10):  # the device is synchronised in between
                real_run.one_step(config, run)
                steps += 1
            finish()
        spent = time.perf_counter() - begin
        # The peak of the same arithmetic as the step's.
        dtype = {"no": "float32", "tf32": "tf32"}.get(arm["precision"], "bfloat16")
        samples_per_s = steps * arm["batch"] / spent
        return {
            **arm,
            "world": run.accelerator.num_processes,
            "device": str(run.accelerator.device.type),
            "samples_per_s": samples_per_s,
            "seconds": spent,
            "shapes": seen,
            "peak_of": dtype,
            "peak_gflops": real_run.peak_gflops(dtype),
            "memory_mib": real_run.memory_mib(),
            "epoch_s": MVSA_SINGLE / samples_per_s,
            "waiting": waited[0] / spent,
            "threads": torch.get_num_threads(),
        }


def finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_a_process(arm: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The arm under its launcher; a failed one (out of memory, say) reports its last error."""
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    launch += ["--main_process_port", "0"]
    launch += ["--config_file", f"launch/accelerate/{arm['engine']}.yaml", "-m", "benchmarks.gpu"]
    command = [sys.executable, *launch, "--arm", json.dumps(arm), "--shards", options.shards]
    command += ["--seconds", str(options.seconds), *(["--tiny"] if options.tiny else [])]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ARM_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return {**arm, "failed": f"not finished after {ARM_LIMIT_S:.0f} s"}
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"group"')]
    if not lines:
        errors = [line for line in ended.stderr.splitlines() if "Error" in line]
        return {**arm, "failed": (errors or ["no error message"])[0].strip()[:120]}
    found: dict[str, Any] = json.loads(lines[0])
    # Counted here: under ZeRO-3 every model built in the process is partitioned.
    size = "tiny" if options.tiny else "large"
    gflop = sum(real_run.gflop_of(size, *shape) for shape in found.pop("shapes"))
    found["tflops"] = gflop / found["seconds"] / 1e3
    found["utilisation"] = gflop / found["seconds"] / found["peak_gflops"]
    return found


def table(rows: list[dict[str, Any]], tiny: bool) -> str:
    headings = ["", "engine", "precision", "compile", "workers", "batch", "samples/s", "on paper"]
    headings += ["TFLOP/s", "of the peak", "MiB", "epoch, s", "waiting for data"]
    cells = []
    for row in rows:
        said = [row[name] for name in ("group", "engine", "precision", "compile", "workers")]
        if "failed" in row:
            cells.append([*said, row["batch"], row["failed"], *[""] * 6])
            continue
        per_s = row["samples_per_s"]
        cells.append(
            [
                *[*said, row["batch"], f"{per_s:.0f}", "" if tiny else f"{per_s / ON_PAPER:.0%}"],
                *[f"{row['tflops']:.1f}", f"{row['utilisation']:.0%}"],
                *[f"{row['memory_mib']:.0f}", f"{row['epoch_s']:.1f}", f"{row['waiting']:.0%}"],
            ]
        )
    return real_run.markdown(headings, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders, small batches")
    parser.add_argument("--only", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--seconds", type=float, default=0.0, help="measured time of each arm")
    parser.add_argument(
        "--budget-s", type=float, default=420.0, help="start no arm after this time"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--arm", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = "tiny" if options.tiny else "large"
    options.seconds = options.seconds or (0.5 if options.tiny else 5.0)
    if options.arm:
        print(json.dumps(run_arm(options.arm, options.shards, size, options.seconds)), flush=True)
        os._exit(0)  # ends loader workers too, and avoids gloo aborting at exit
    began, rows, facts = time.monotonic(), [], real_run.hardware()
    samples, side = (200, 64) if options.tiny else (2000, 256)
    workers = min(8, max(1, (os.cpu_count() or 1) - 1))
    with real_run.packed(options.shards, samples, side) as options.shards:
        for arm in arms(options.tiny, workers):
            if arm["group"] in options.only and time.monotonic() - began < options.budget_s:
                rows.append(in_a_process(arm, options))
            elif arm["group"] in options.only:
                rows.append({**arm, "failed": "no time left"})
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table(rows, options.tiny))
    real_run.write_json(options.json, {"hardware": facts, "rows": rows})


if __name__ == "__main__":
    main()
