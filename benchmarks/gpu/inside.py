"""In a measuring process: what a step must not do on a GPU, and what exists on a GPU alone."""

from __future__ import annotations

import gc
import hashlib
import tempfile
import traceback
import warnings
from collections import Counter
from typing import Any

import psutil
import torch

from benchmarks import real_run
from benchmarks.gpu.bench import ROOT
from benchmarks.gpu.steps import forget

Found = dict[str, Any]
_BUSY_CYCLES = 20_000_000  # about 10 ms of a GPU
_MIB = 2**20


def _step(config: Any, run: Any, reports: Any, mode: str) -> None:
    """One step of train.py's loop; the read of an earlier step's report may wait."""
    import train
    from mmsa.process.start_clock import StartClock
    from mmsa.training.optim import seed_step, set_learning_rates

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_sync_debug_mode(mode)
    try:
        rates = set_learning_rates(run.optimizer, 1.0)
        seed_step(config.run.seed, run.state.step, run.accelerator.process_index)
        result = train.train_step(run, StartClock())
        run.state.step += 1
        reports.post(run.state.step, result, rates, stop=[])
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    reports.collect(everything=False)


def syncs(settings: list[str], warm: int, steps: int, mode: str) -> Found:
    """Where the host waits for the device inside a step: {"places": {place: times}, "on_gpu"}.

    `mode` is that of `torch.cuda.set_sync_debug_mode`: with "error" the first place ends it, with
    "warn" all are counted.
    """
    from mmsa.training.step_reports import StepReports

    places: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        config, run = real_run.start_run([*settings, f"run.dir={folder}"])
        reports = StepReports(run.accelerator, [], run.bare_model.fusion.measures)
        for _ in range(warm):
            _step(config, run, reports, "default")
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                for _ in range(steps):
                    _step(config, run, reports, mode)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            places[_last_place(error)] += 1
        for one in warned:
            if "synchroniz" in str(one.message):
                places[f"{one.filename}:{one.lineno}"] += 1
    return {"places": dict(places.most_common(12)), "on_gpu": torch.cuda.is_available()}


def _last_place(error: BaseException) -> str:
    """The innermost line of this repository that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(ROOT))]
    return f"{own[-1].filename.removeprefix(str(ROOT))[1:]}:{own[-1].lineno}: {own[-1].line}"


def memory(settings: list[str], early: int, late: int) -> Found:
    """MiB of the device and of this process, early and late in a run: the least of ten steps."""
    with tempfile.TemporaryDirectory() as folder:
        config, run = real_run.start_run([*settings, f"run.dir={folder}"])
        least: dict[str, list[float]] = {"device": [], "host": []}
        device, host = [], []
        for step in range(1, late + 1):
            real_run.one_step(config, run)
            gc.collect(0)
            device.append(torch.cuda.memory_allocated() / _MIB if torch.cuda.is_available() else 0)
            host.append(psutil.Process().memory_info().rss / _MIB)
            if step in (early, late):
                least["device"].append(min(device[-10:]))
                least["host"].append(min(host[-10:]))
    return {"on_gpu": torch.cuda.is_available(), "steps": [early, late], **least}


def streams(settings: list[str], number: int) -> Found:
    """Whether batches and reports are the same by their streams as without.

    While the GPU is kept busy: a copy or a sum that does not wait for what it depends on, or memory
    that is used again too early, then gives other numbers.
    """
    plain = _digests(settings, number, copy_stream=False)
    copied = _digests(settings, number, copy_stream=True)
    same_batches = sum(one == other for one, other in zip(plain, copied, strict=True))
    wrong = _wrong_reports(settings, number)
    on_gpu = torch.cuda.is_available()
    return {"on_gpu": on_gpu, "same": same_batches, "of": number, "wrong_reports": wrong}


def _digests(settings: list[str], number: int, *, copy_stream: bool) -> list[str]:
    """Of the first batches, as the computing stream sees them."""
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        more = [f"run.dir={folder}", f"gpu.copy_stream={str(copy_stream).lower()}"]
        _, run = real_run.start_run([*settings, *more])
        for _ in range(number):
            batch = next(run.loaders.train)
            tensors = {name: one for name, one in batch.items() if isinstance(one, torch.Tensor)}
            _keep_busy()
            # Copies on the computing stream, which is behind; the batch itself is dropped here.
            kept.append({name: one.clone() for name, one in sorted(tensors.items())})
            del batch, tensors
        del run
    found = []
    for tensors in kept:
        digest = hashlib.sha256()
        for name, one in tensors.items():
            digest.update(name.encode() + one.cpu().contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
    forget()
    return found


def _keep_busy() -> None:
    if torch.cuda.is_available():
        torch.cuda._sleep(_BUSY_CYCLES)


def _wrong_reports(settings: list[str], number: int) -> int:
    """How many of the reports were not what was posted."""
    from mmsa.training.step_reports import StepReport, StepReports, StepResult

    with tempfile.TemporaryDirectory() as folder:
        _, run = real_run.start_run([*settings, f"run.dir={folder}"])
        accelerator = run.accelerator
        reports, found = StepReports(accelerator, ["a stop"]), list[StepReport]()
        for step in range(1, number + 1):
            loss = torch.zeros((), device=accelerator.device)
            _keep_busy()
            loss += step / accelerator.num_processes
            result = StepResult(loss, loss * 2, loss.isnan(), [])
            reports.post(step, result, {}, stop=[])
            loss.fill_(-1.0)  # posted is posted
            found += reports.collect(everything=step == number)
        norms = 2 / accelerator.num_processes
        del run, accelerator
    forget()
    right = [
        report.loss == report.step and report.grad_norm == report.step * norms for report in found
    ]
    return number - sum(right)
