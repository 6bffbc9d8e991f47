"""Checks of a training run before it is submitted, the same as on the node."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from launch import job_log, slurm_queue
from launch.prefetch import missing_for_jobs
from launch.script import shape_of
from launch.site import ROOT, Site
from launch.slurm_partitions import check_fits, read_partitions
from mmsa.config import Config
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports
from mmsa.process.runtime import World


def check_slurm(kind: str, site: Site, *, dry_run: bool) -> list[str]:
    """Raise `UserError` if there is no SLURM, or the partition is unknown or too small.

    A dry run works without SLURM: then this returns a note about what was not checked.
    """
    if dry_run and not slurm_queue.available():
        return ["there is no SLURM on this machine: the partition was not checked"]
    slurm_queue.require()
    check_fits(read_partitions(), site.partition, shape_of(kind, site))
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


def check_run(config: Config) -> list[str]:
    """Raise `UserError` if the run cannot start; returns notes for the user.

    Checks the shards, the batch arithmetic for this shape, and that the run directory belongs to
    this configuration, is not finished and has no queued job.
    """
    from mmsa.data.manifest import load_manifest
    from mmsa.data.plan import batch_plan
    from mmsa.data.reader import SplitReader
    from mmsa.labels import class_map
    from mmsa.training.checkpoints import resume
    from mmsa.training.checkpoints.intact import choose_checkpoint
    from mmsa.training.checkpoints.run_config import resumes

    shards = str(config.data.shards)
    manifest = load_manifest(shards)
    classes = class_map(manifest.classes, config.data.classes)
    assert config.launch.world_size != "any"
    plan = batch_plan(
        len(SplitReader(shards, manifest, "train", classes)),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=config.launch.world_size,
        drop_last=config.data.drop_last,
    )
    run_dir = Path(str(config.run.dir))
    check_no_job(run_dir)
    choice = choose_checkpoint(run_dir)
    choice.require()
    if not resumes(
        choice, config, precision=lambda: _precision(config), shards_digest=lambda: manifest.digest
    ):
        return [plan.in_words()]
    if resume.is_finished(run_dir):
        raise UserError(
            f"{run_dir} is finished; there is nothing to submit. Evaluate it with: "
            f"python -m launch submit evaluate ... -- {run_dir}; or choose another run.dir"
        )
    return [plan.in_words(), f"{run_dir} will resume from its newest checkpoint"]


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


def check_no_job(run_dir: Path) -> None:
    """Raise `UserError` if a training job of this run directory is queued or running."""
    jobs = job_log.known_jobs(job_log.slurm_dir(run_dir))
    train_jobs = [job for job, facts in jobs.items() if facts["kind"] == "train"]
    for job, state in slurm_queue.states(train_jobs).items():
        raise UserError(
            f"job {job} of {run_dir} is {state}; wait for it (python -m launch status {run_dir}) "
            f"or cancel it (scancel {job}), or choose another run.dir"
        )


def _precision(config: Config) -> str:
    """The precision of the launch, by the same rule as on the node."""
    from mmsa.engines.engine import precision_of_launch

    file = ROOT / "launch" / "accelerate" / f"{config.launch.engine}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    engine_file = content.get("deepspeed_config", {}).get("deepspeed_config_file")
    world = World(launched=True, mixed_precision=str(content.get("mixed_precision", "no")))
    if engine_file:
        world = World(launched=True, deepspeed=True, deepspeed_file=str(ROOT / engine_file))
    return precision_of_launch(config.train.mixed_precision, world)
