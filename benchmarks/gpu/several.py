"""Stages for two GPUs and more; in the tiny form without a GPU, for two CPU processes and gloo."""

from __future__ import annotations

import shutil
import signal
import time
from typing import Any

from benchmarks import results
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import FIRST_STEP, correctness_settings
from benchmarks.gpu.launches import Launch, losses
from benchmarks.gpu.outcome import NotRun, Outcome
from benchmarks.gpu.speed import arm, measure

TIMEOUT_S = 20  # of a collective, in the stage that lets one time out
LAUNCHER_KILLS_S = 40.0  # a rank that does not hear SIGTERM is killed 30 s later
CPU_TIMES = 5.0  # as much longer where CPU processes wait for each other's cores


def worlds(bench: Bench) -> list[int]:
    """1, 2, 4 and so on up to all GPUs; raises `NotRun` where there is one."""
    most = bench.gpus if bench.on_gpu else 2
    if bench.in_process or most < 2:
        raise NotRun("needs two GPUs")
    found = [2**power for power in range(8) if 2**power <= most]
    return found if most in found else [*found, most]


def order(bench: Bench, outcome: Outcome) -> None:
    """All ranks make the same collectives in the same order, through a validation and a save.

    TORCH_DISTRIBUTED_DEBUG=DETAIL compares kind, shapes and number of each over the ranks, and
    ends the run where they differ. A wrong sum would change the first loss. DDP over gloo ends with
    a crash there (torch 2.15: its logger takes what compares the collectives for gloo itself), so
    without a GPU only its loss is looked at.
    """
    world, steps = worlds(bench)[-1], 4 if bench.tiny else 12
    place = bench.out / "order"
    shutil.rmtree(place, ignore_errors=True)
    first: dict[str, float] = {}
    for engine in ("ddp", "zero2", "zero3"):
        with outcome.asking(engine) as answer:
            settings = correctness_settings(bench, place / engine, steps)
            settings += [f"train.global_batch_size={4 * world}", "train.micro_batch_size=2"]
            settings += ["train.mixed_precision=no"]
            compares = bench.on_gpu or engine != "ddp"
            detail = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"} if compares else {}
            bench.train(settings, engine, world, detail)
            first[engine] = losses(place / engine)[0]
            apart = abs(first[engine] / next(iter(first.values())) - 1)
            agree = "agree" if compares else "trained, their collectives not compared"
            answer(apart <= FIRST_STEP, f"{world} ranks {agree}; first loss {apart:.1e} from DDP's")
    shutil.rmtree(place, ignore_errors=True)


def timeout(bench: Bench, outcome: Outcome) -> None:
    """A rank that hangs ends the run after `run.collective_timeout_s`, and not before."""
    worlds(bench)
    run_dir = bench.out / "timeout"
    shutil.rmtree(run_dir, ignore_errors=True)
    settings = correctness_settings(bench, run_dir, 100_000)
    settings += ["train.epochs=100000", f"run.collective_timeout_s={TIMEOUT_S}"]
    with outcome.asking("a rank that hangs") as answer:
        launch = Launch(bench, run_dir, settings, processes=2)
        try:
            launch.wait_for_steps()
            begin = time.monotonic()
            launch.ranks()[1].send_signal(signal.SIGSTOP)
            code = launch.wait()
            seconds = time.monotonic() - begin
        finally:
            launch.kill()
        told = launch.status()
        outcome.figures = {"seconds": seconds, "exit_code": code, "status": told["state"]}
        longest = TIMEOUT_S + LAUNCHER_KILLS_S * (1.0 if bench.on_gpu else CPU_TIMES)
        right = code != 0 and TIMEOUT_S - 2 <= seconds <= longest
        answer(right, f"ended with {code} after {seconds:.0f} s; {told['state']}: {told['reason']}")
    with outcome.asking("NCCL's own record") as answer:
        bench.need_gpu("NCCL")
        dumps = sorted((run_dir / "nccl").glob("rank_*"))
        answer(bool(dumps), f"{len(dumps)} rank(s) wrote their last collectives")
    shutil.rmtree(run_dir)


def scaling(bench: Bench, outcome: Outcome) -> None:
    """Samples per second by the number of GPUs, and against as many times one."""
    rows: list[dict[str, Any]] = []
    for world in worlds(bench):
        for engine in ("ddp", "zero3"):
            with outcome.asking(f"{world} x {engine}"):
                micro = 8 if bench.tiny else 256
                one = arm(bench, engine, batch=micro, workers=0 if bench.tiny else -1)
                one["settings"] += [f"train.global_batch_size={micro * world}"]
                (row,) = measure(bench, [one], engine, world)
                if "failed" in row:
                    outcome.check(f"{world} x {engine}", False, row["failed"])
                    continue
                rows.append(row)
                alone = next((r for r in rows if r["world"] == 1 and r["name"] == engine), row)
                times = row["samples_per_s"] / alone["samples_per_s"]
                said = f"{row['samples_per_s']:.0f} samples/s, {times:.2f} times one"
                outcome.measured(f"{world} x {engine}", said)
    outcome.figures["rows"] = rows


def bandwidth(bench: Bench, outcome: Outcome) -> None:
    """How fast all GPUs add up numbers."""
    world = worlds(bench)[-1]
    asked: dict[str, Any] = {"mib": [1, 4] if bench.tiny else [1, 25, 256, 1024]}
    asked["repeats"] = 3 if bench.tiny else 20
    rows = bench.child("bandwidth", "ddp", world, **asked)
    outcome.figures["rows"] = rows
    cells = [[one["mib"], f"{one['ms']:.2f}", f"{one['gb_per_s']:.1f}"] for one in rows]
    outcome.table = results.markdown(["MiB", "ms", "GB/s of the wire"], cells)
    best = max(rows, key=lambda one: float(one["gb_per_s"]))
    said = f"{best['gb_per_s']:.1f} GB/s at {best['mib']} MiB over {world} ranks"
    outcome.measured("all-reduce", said)
