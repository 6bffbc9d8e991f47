"""Checks of a training run before it is submitted or its ranks start, the same as theirs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from launch import job_log, slurm_queue
from launch.prefetch import missing_for_jobs
from launch.script import shape_of
from launch.site import ROOT, Site
from launch.slurm_partitions import check_fits, read_partitions
from mmsa.config import Config
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports
from mmsa.foundation.parsing import parse_yaml
from mmsa.process.runtime import World


def check_slurm(kind: str, site: Site, *, dry_run: bool) -> list[str]:
    """Raise `UserError` if there is no SLURM, or the partition is unknown or too small.

    A dry run works without SLURM, or without its controller: then this returns a note about what
    was not checked.
    """
    if dry_run and not slurm_queue.available():
        return ["there is no SLURM on this machine: the partition was not checked"]
    slurm_queue.require()
    try:
        partitions = read_partitions()
    except UserError as error:
        if not dry_run:
            raise
        return [f"the partition was not checked: {error}"]
    check_fits(partitions, site.partition, shape_of(kind, site))
    return []


def load_for_shape(file: str, overrides: list[str], site: Site) -> Config:
    """Load a configuration, with `launch.engine` and `launch.world_size` set for the job.

    Raises `UserError` for every problem that `train.py` would report, and if the configuration
    expects another engine or world size.
    """
    from mmsa.config import load_config
    from mmsa.training.setup import training_checks

    config = load_config(file, overrides, checks=training_checks())
    engine, world_size = engine_of(config, site), world_size_of(site)
    if config.launch.engine not in ("any", engine):
        raise UserError(
            f"launch.engine={config.launch.engine}, but the job uses {engine}; give --engine "
            f"{config.launch.engine}, or remove launch.engine"
        )
    if config.launch.world_size not in ("any", world_size):
        raise UserError(
            f"launch.world_size={config.launch.world_size}, but the job has {shape_in_words(site)} "
            f"= {world_size}; change --nodes or --gpus-per-node, or remove launch.world_size"
        )
    filled = [*overrides, f"launch.engine={engine}", f"launch.world_size={world_size}"]
    return load_config(file, filled)


def load_for_ranks(
    file: str | None, overrides: list[str], *, engine: str | None, processes: int | None
) -> Config:
    """Load a configuration for a launch on this machine, with its engine and world size.

    `engine` and `processes` are None where the command leaves them to the configuration: then DDP,
    with all GPUs or one CPU process. Raises `UserError` for every problem that `train.py` would
    report, and where command and configuration differ.
    """
    from mmsa.config import load_config
    from mmsa.training.setup import training_checks

    config = load_config(file, overrides, checks=training_checks())
    if engine not in (None, config.launch.engine) and config.launch.engine != "any":
        raise UserError(
            f"launch.engine={config.launch.engine}, but --engine {engine}; leave one of them out"
        )
    if processes not in (None, config.launch.world_size) and config.launch.world_size != "any":
        raise UserError(
            f"launch.world_size={config.launch.world_size}, but -n {processes}; leave one of them "
            "out"
        )
    if engine is None:
        engine = "ddp" if config.launch.engine == "any" else config.launch.engine
    if processes is None:
        known = config.launch.world_size
        processes = default_processes() if known == "any" else known
    shape = [f"launch.engine={engine}", f"launch.world_size={processes}"]
    return load_config(file, [*overrides, *shape])


def default_processes() -> int:
    """One per GPU of this machine, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def engine_of(config: Config, site: Site) -> str:
    """The engine of the job: from --engine or the site, else the configuration, else DDP."""
    if site.engine:
        return site.engine
    return config.launch.engine if config.launch.engine != "any" else "ddp"


def world_size_of(site: Site) -> int:
    return (site.nodes or 1) * (site.gpus_per_node or site.cpu_processes or 1)


def shape_in_words(site: Site) -> str:
    nodes = site.nodes or 1
    if site.gpus_per_node:
        each = f"{site.gpus_per_node} GPU(s)"
    else:
        each = f"{site.cpu_processes or 1} CPU process(es)"
    return f"{nodes} node(s) x {each}"


def check_run(config: Config, *, dry_run: bool = False) -> list[str]:
    """Raise `UserError` if a job of the run cannot start; returns notes for the user.

    Checks what `check_start` does, and that the run is not finished and has no queued job. A dry
    run goes on where SLURM does not say which jobs are queued.
    """
    run_dir = Path(str(config.run.dir))
    unchecked = []
    try:
        jobs = _queued_jobs(run_dir)
    except UserError as error:
        if not dry_run:
            raise
        jobs = {}
        unchecked = [f"whether {run_dir} has a job in the queue was not checked: {error}"]
    check_no_job(run_dir, jobs)
    notes, finished = check_start(config)
    if finished:
        from mmsa.training.checkpoints.resume import further_in_words

        raise UserError(
            f"{run_dir} is finished; there is nothing to submit. Evaluate it with: "
            f"python -m launch submit evaluate ... -- {shlex.quote(str(run_dir))}; or choose "
            f"another run.dir; {further_in_words(run_dir)}"
        )
    return [*notes, *unchecked]


def check_start(config: Config) -> tuple[list[str], bool]:
    """Raise `UserError` if the run cannot start; returns notes, and whether it is finished.

    Checks the shards, the batch arithmetic for this shape, that the run directory belongs to this
    configuration, that what a new run begins from is there, and that it can learn from samples
    without a text or an image where the data has such.
    """
    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.reader import SplitReader
    from mmsa.data.shard_cache import use_cache_of
    from mmsa.data.trainable import require_train_and_val
    from mmsa.export import read_export
    from mmsa.export_target import resolve_export
    from mmsa.labels import class_map
    from mmsa.training.checkpoints import resume
    from mmsa.training.checkpoints.intact import choose_checkpoint
    from mmsa.training.checkpoints.run_config import resumes
    from mmsa.training.missing_modalities import settle_stand_ins

    shards = str(config.data.shards)
    # Without the nodes' cache, which this machine may not have.
    use_cache_of(config.data.model_copy(update={"cache": None, "cache_limit": None}))
    manifest = load_manifest(shards)
    if "train" not in manifest.splits:  # the ranks look for both
        require_train_and_val(shards, manifest)
    classes = class_map(manifest.classes, config.data.classes)
    assert config.launch.world_size != "any"
    plan = batch_plan(
        len(SplitReader(shards, manifest, "train", classes)),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=config.launch.world_size,
        drop_last=config.data.drop_last,
        groups=config.data.groups,
    )
    run_dir = Path(str(config.run.dir))
    choice = choose_checkpoint(run_dir)
    choice.require()
    if not resumes(
        choice, config, precision=lambda: _precision(config), shards_digest=lambda: manifest.digest
    ):
        if config.train.init_from is not None:
            read_export(resolve_export(Path(config.train.init_from).expanduser()).directory)
        if "val" in manifest.splits:  # the ranks refuse a set without it
            settle_stand_ins(config, manifest)
        return [plan.in_words()], False
    notes = [plan.in_words(), f"{run_dir} will resume from its newest checkpoint"]
    return notes, resume.is_finished(run_dir)


def check_ranks(config: Config) -> bool:
    """Raise `UserError` if ranks on this machine cannot start; returns whether the run is finished.

    Besides what `check_start` does: that no other launch holds the directory, and that device and
    engine can run these settings.
    """
    from mmsa.engines.engine import check_device
    from mmsa.training.checkpoints.run_lock import lock_run

    finished = check_start(config)[1]
    run_dir = Path(str(config.run.dir))
    if not finished and run_dir.is_dir():
        lock_run(run_dir).release()
    check_device(config, _world(config))
    return finished


def note_missing_weights(config: Config, words: list[str], site: Site) -> list[str]:
    """Notes about pretrained weights that are missing here.

    Not an error, because jobs may use another cache (HF_HOME in the site's `setup`).
    """
    missing = missing_for_jobs(config, words, site.cache)
    if not missing:
        return []
    imports, others = take_imports(words)
    prefetch = shlex.join([*as_options(imports), "prefetch", *others])
    return [
        *missing,
        "jobs have no network and use the cache of the site file or your own cache: fetch these "
        f"first, with python -m launch {prefetch}",
    ]


def _queued_jobs(run_dir: Path) -> dict[str, str]:
    """Job -> state of the training jobs of this run directory that are queued or running."""
    jobs = job_log.known_jobs(job_log.slurm_dir(run_dir))
    return slurm_queue.states(job for job, facts in jobs.items() if facts["kind"] == "train")


def check_no_job(run_dir: Path, jobs: Mapping[str, str]) -> None:
    """Raise `UserError` if one of `jobs` (job -> state) is queued or running on this directory."""
    for job, state in jobs.items():
        raise UserError(
            f"job {job} of {run_dir} is {state}; wait for it (python -m launch status "
            f"{shlex.quote(str(run_dir))}) or cancel it (scancel {job}), or choose another run.dir"
        )


def _precision(config: Config) -> str:
    """The precision of the launch, by the same rule as on the node."""
    from mmsa.engines.engine import precision_of_launch

    return precision_of_launch(config.train.mixed_precision, _world(config))


def _world(config: Config) -> World:
    """What the launcher will say to the ranks, as the file of `launch.engine` has it."""
    assert config.launch.world_size != "any"
    file = ROOT / "launch" / "accelerate" / f"{config.launch.engine}.yaml"
    content = parse_yaml(file.read_text(encoding="utf-8"))
    world = World(launched=True, world_size=config.launch.world_size)
    engine_file = content.get("deepspeed_config", {}).get("deepspeed_config_file")
    if not engine_file:
        return replace(world, mixed_precision=str(content.get("mixed_precision", "no")))
    return replace(
        world,
        deepspeed=True,
        deepspeed_file=str(ROOT / engine_file),
        zero_stage=int(config.launch.engine.removeprefix("zero")),
    )
