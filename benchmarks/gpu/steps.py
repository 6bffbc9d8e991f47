"""In a measuring process: the real step of a run, timed, one arm after the other."""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import real_run, results
from benchmarks.gpu.child import fresh_accelerate
from benchmarks.gpu.outcome import shortened

Row = dict[str, Any]


def timed_arms(arms: list[Row], seconds: float, warm_s: float) -> list[Row]:
    """A row for each arm, each measured for about `seconds` after it has warmed up.

    An arm is {name, settings} with, if it says so, `bucket_view: false` (DDP's gradients are
    copies) or `in_memory: true` (the same batch again and again: no loader, one length). One that
    fails says so in `failed`, and the next one follows.
    """
    rows = []
    for arm in arms:
        try:
            row = _timed(arm, seconds, warm_s)
        except torch.OutOfMemoryError:
            row = {"failed": "out of memory"}
        except Exception as error:
            row = {"failed": shortened(f"{type(error).__name__}: {error}", 160)}
        rows.append({"name": arm["name"], **row})
        forget()
    return rows


def _timed(arm: Row, seconds: float, warm_s: float) -> Row:
    with tempfile.TemporaryDirectory() as folder, _bucket_view(arm.get("bucket_view", True)):
        config, run = real_run.start_run([*arm["settings"], f"run.dir={folder}"])
        waited, seen = [0.0], list[real_run.Shape]()
        if arm.get("in_memory"):
            _keep_in_memory(run)
        run.loaders.train = _clocked(run.loaders.train, waited)
        real_run.note_shapes(run, seen)
        warm_step_s = _warm_up(config, run, seen, warm_s)
        number = _agreed(run, max(2, round(seconds / warm_step_s)))
        known, waited[0] = set(seen), 0.0
        seen.clear()
        spent = _steps(config, run, number)
        samples = number * run.data.plan.global_batch_size
        return {
            "batch": config.train.micro_batch_size,
            "world": run.accelerator.num_processes,
            "workers": config.data.num_workers,
            "precision": config.train.mixed_precision,
            "steps": number,
            "seconds": spent,
            "samples_per_s": samples / spent,
            "ms_per_step": 1e3 * spent / number,
            "waiting": waited[0] / spent,
            "new_shapes": len(set(seen) - known),
            "shapes": seen,
            "memory_mib": results.memory_mib(),
        }


def _warm_up(config: Any, run: Any, seen: list[real_run.Shape], warm_s: float) -> float:
    """Steps until no batch has had a new shape for some; returns the seconds of the last ones.

    The first batch of a shape may cost the choice of a kernel, or its compilation. With several
    ranks their number is fixed, because all must take as many.
    """
    begin, quiet, known = time.monotonic(), 0, 0
    fixed = 12 if run.accelerator.num_processes > 1 else None
    for step in itertools.count(1):
        real_run.one_step(config, run)
        quiet = quiet + 1 if len(set(seen)) == known else 0
        known = len(set(seen))
        if step == fixed:
            break
        if fixed is None and (quiet >= 8 or time.monotonic() - begin > warm_s) and step >= 3:
            break
    return _steps(config, run, 3) / 3


def _steps(config: Any, run: Any, number: int) -> float:
    """Seconds of so many steps; the device is waited for once, at their end."""
    finish()
    begin = time.perf_counter()
    for _ in range(number):
        real_run.one_step(config, run)
    finish()
    return time.perf_counter() - begin


def _agreed(run: Any, number: int) -> int:
    """The main rank's number, on every rank."""
    if run.accelerator.num_processes == 1:
        return number
    told = torch.tensor(number, device=run.accelerator.device)
    torch.distributed.broadcast(told, 0)
    return int(told)


def _keep_in_memory(run: Any) -> None:
    """Every step gets the same batch, which is on the device already."""
    from mmsa.evaluation.predict import to_device

    run.loaders.train = itertools.repeat(to_device(next(run.loaders.train), run.accelerator.device))


def _clocked(batches: Iterator[Any], waited: list[float]) -> Iterator[Any]:
    """`batches`, adding the seconds spent waiting for them to `waited[0]`."""
    while True:
        begin = time.perf_counter()
        batch = next(batches)
        waited[0] += time.perf_counter() - begin
        yield batch


@contextmanager
def _bucket_view(wanted: bool) -> Iterator[None]:
    """Inside, DDP's gradients are parts of its buckets, as they are in a run, or copies."""
    import accelerate

    real = accelerate.DistributedDataParallelKwargs

    def changed(**settings: Any) -> Any:
        return real(**{**settings, "gradient_as_bucket_view": wanted})

    accelerate.DistributedDataParallelKwargs = changed
    try:
        yield
    finally:
        accelerate.DistributedDataParallelKwargs = real


def finish() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Leave nothing of an arm to the next one: memory, compiled code, Accelerate's state."""
    fresh_accelerate()
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(precision: str, side: int | None, seconds: float) -> float:
    """GFLOP per second of products of square matrices in the arithmetic of a precision."""
    dtype = {"no": "float32", "tf32": "tf32"}.get(precision, "bfloat16")
    return real_run.peak_gflops(dtype, side, seconds)
