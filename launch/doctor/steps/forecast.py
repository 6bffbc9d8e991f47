"""What one rank of a run does on this node: real training steps of the configuration, for seconds.

Measured three ways: steps as in training, the loader alone, and steps on one batch that is there.
Nothing is written to the run directory; the shards are read as training reads them.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.doctor.node import Request

if TYPE_CHECKING:
    from mmsa.config import Config
    from mmsa.training.run import Run

_FOR_S = 8.0  # of each of the three, after the first steps
_FIRST_STEPS = 2  # load kernels and fill the loader
_AT_LEAST = 3
_MOST_ROWS = 1024  # of a micro-batch that is tried
_NEWEST = 50  # lines of a run's metrics


def run(request: Request) -> dict[str, Any]:
    """Rates in samples/s of one rank, steps and sizes of the run; `real`: what a run has logged."""
    from launch.script import caches
    from mmsa.extensions import import_extensions

    if request.get("cache"):
        os.environ.update(caches(request["cache"]))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_extensions(request.get("imports", []))
    from mmsa.config import load_config
    from mmsa.process.arguments import take_configuration
    from mmsa.process.runtime import prepare_process

    prepare_process()
    config = load_config(*take_configuration(None, request["words"]))
    ranks = len(request["nodes"]) * request["processes"]
    with tempfile.TemporaryDirectory(prefix="mmsa-doctor-") as folder:
        facts = _measured(_share_of_a_rank(config, ranks, Path(folder) / "run"))
    facts |= _length(config, ranks)
    if request.get("run_dir"):
        facts["real"] = real_run(Path(request["run_dir"]))
    return facts


def _share_of_a_rank(config: Config, ranks: int, run_dir: Path) -> Config:
    """The configuration of a run of one rank that does in a step what each of `ranks` does."""
    micro = config.train.micro_batch_size
    share = max(micro, config.train.global_batch_size // ranks // micro * micro)
    train = config.train.model_copy(update={"global_batch_size": share, "max_steps": None})
    settings = {"dir": str(run_dir), "trackers": (), "audit": False, "profile": False}
    return config.model_copy(
        update={
            "train": train.model_copy(update={"epochs": 10_000}),  # the loader never ends
            "run": config.run.model_copy(update=settings),
            "launch": type(config.launch)(),
            "data": config.data.model_copy(update={"groups": 1}),
        }
    )


def _measured(config: Config) -> dict[str, Any]:
    from mmsa.engines import engine
    from mmsa.engines.gpu_supply import loader_workers
    from mmsa.process.runtime import World
    from mmsa.training.run import Run
    from mmsa.training.setup import prepare_run

    logging.getLogger("mmsa").setLevel(logging.WARNING)
    Path(str(config.run.dir)).mkdir()
    prepared = prepare_run(config, World(), None)
    accelerator = engine.make_accelerator(
        config.train.mixed_precision,
        prepared.data.plan,
        clip_norm=config.optim.clip_norm,
        gpu=config.gpu,
    )
    run = Run(prepared, accelerator)
    run.model.train()
    samples = config.train.global_batch_size
    micro = config.train.micro_batch_size
    together = samples / _seconds_of_a_step(run)
    loader_s: list[float] = []
    for number in itertools.count():
        start = time.perf_counter()
        batch = next(run.loaders.train)
        if number >= 4:  # some were ready
            loader_s.append(time.perf_counter() - start)
        if len(loader_s) >= _AT_LEAST and sum(loader_s) > _FOR_S / 2:
            break
    run.loaders.train = itertools.repeat(batch)
    alone = samples / _seconds_of_a_step(run)
    trained = [value for value in run.bare_model.parameters() if value.requires_grad]
    facts = {
        "device": str(accelerator.device),
        "samples_per_step": samples,
        "micro_batch": micro,
        "together_per_s": together,
        "loader_per_s": micro * len(loader_s) / sum(loader_s),
        "workers": loader_workers(config.data.num_workers, World()),
        "step_per_s": alone,
        "gradient_bytes": sum(4 * value.numel() for value in trained),
    }
    if accelerator.device.type == "cuda":
        facts["largest_micro_batch"] = largest(lambda rows: _fits(run, batch, rows), micro)
    return facts


def _seconds_of_a_step(run: Run) -> float:
    """Mean wall time of a training step, with its update of the weights."""
    import torch

    from mmsa.process.start_clock import StartClock
    from train import train_step

    clock = StartClock(from_process_start=False)
    steps, start = -_FIRST_STEPS, time.perf_counter()
    while steps < _AT_LEAST or time.perf_counter() - start < _FOR_S:
        if steps == 0:
            start = time.perf_counter()
        train_step(run, clock)
        run.state.step += 1
        steps += 1
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def largest(fits: Callable[[int], bool], begin: int, most: int = _MOST_ROWS) -> int:
    """The largest of `begin`, 2 `begin`, ... up to `most` that `fits`; 0 if none does."""
    found, rows = 0, begin
    while rows <= most and fits(rows):
        found, rows = rows, rows * 2
    return found


def _fits(run: Run, batch: Any, rows: int) -> bool:
    """Whether forward and backward of `rows` samples fit in the GPU's memory."""
    import torch

    from mmsa.evaluation.predict import inputs_of, to_device

    def repeated(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.repeat(-(-rows // len(value)), *[1] * (value.dim() - 1))[:rows]

    try:
        many = {key: repeated(value) for key, value in batch.items()}
        on_device = to_device({**many, "num_images": rows}, run.accelerator.device)
        output = run.model(*inputs_of(on_device), auxiliary=run.objective.has_auxiliary)
        losses = run.objective.per_sample(output, on_device)
        run.accelerator.backward((losses * on_device["weights"]).mean())
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        run.optimizer.zero_grad()
        torch.cuda.empty_cache()
    return True


def _length(config: Config, ranks: int) -> dict[str, Any]:
    """The steps of the run itself, at its own global batch and all ranks."""
    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.reader import SplitReader
    from mmsa.labels import class_map

    shards = str(config.data.shards)
    manifest = load_manifest(shards)
    classes = class_map(manifest.classes, config.data.classes)
    plan = batch_plan(
        len(SplitReader(shards, manifest, "train", classes)),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=ranks,
        drop_last=config.data.drop_last,
        groups=config.data.groups,
    )
    return {
        "ranks": ranks,
        "global_batch": config.train.global_batch_size,
        "num_steps": plan.num_steps(config.train.epochs, config.train.max_steps),
    }


def real_run(run_dir: Path) -> dict[str, Any]:
    """What a run in this directory has logged: median `samples_per_s` of all ranks, and `ranks`."""
    from mmsa.foundation.parsing import read_json_objects

    facts: dict[str, Any] = {}
    lines = read_json_objects(run_dir / "metrics.jsonl")
    rates = [line for line in lines if isinstance(line.get("samples_per_s"), int | float)]
    if rates:
        newest = rates[1:][-_NEWEST:] or rates  # the first line includes the start
        facts["samples_per_s"] = statistics.median(one["samples_per_s"] for one in newest)
        facts["lines"] = len(newest)
        with suppress(OSError):
            log = (run_dir / "log.txt").read_text(encoding="utf-8", errors="replace")
            worlds = re.findall(r"world_size (\d+)", log)
            facts["ranks"] = int(worlds[-1]) if worlds else 0
    return facts
