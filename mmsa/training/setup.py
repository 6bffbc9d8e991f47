"""Preparing a run: data, batch arithmetic, tokenizer, model, loaders.

Only pure checks and files, no collective and no device: every rank finds the same problems.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from mmsa.config import Check, Config
from mmsa.data.batch_requests import EvaluationRequests, TrainRequests
from mmsa.data.decoding.auto_augment import AutoAugment
from mmsa.data.loading.workers import start_forkserver
from mmsa.data.manifest import Manifest, load_manifest
from mmsa.data.modality_dropout import ModalityDropout
from mmsa.data.modality_labels import shares_with_labels
from mmsa.data.plan import BatchPlan, batch_plan
from mmsa.data.read_and_decode import Augmentation
from mmsa.data.reader import SplitReader
from mmsa.data.shard_needs import start_downloads
from mmsa.data.stream import Loader
from mmsa.data.trainable import how_to_fill, require_train_and_val
from mmsa.engines.gpu_supply import loader_workers
from mmsa.engines.gpu_texts import text_layout
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import metric_problem
from mmsa.labels import ClassMap, class_map
from mmsa.models.auxiliary import auxiliary_weights
from mmsa.models.model import MODEL_CHECKS, SentimentModel
from mmsa.process.runtime import World
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.checkpoints.best_export import export_path
from mmsa.training.checkpoints.disk_space import DiskNeed, check_room, disk_need
from mmsa.training.checkpoints.intact import damage_of_export
from mmsa.training.model_for_engine import check_taken_by_launch
from mmsa.training.model_parts import build_or_load
from mmsa.training.prepared_run import (
    ModelParts,
    PreparedRun,
    RunData,
    RunLoaders,
    TrainingState,
)
from mmsa.training.read_back import check_read_back
from mmsa.training.trackers import tracker_problems

logger = logging.getLogger("mmsa")


def training_checks() -> list[Check]:
    """What a training run requires of its settings beyond their types."""
    return [_required_problems, *MODEL_CHECKS, tracker_problems]


def _required_problems(raw: dict[str, Any]) -> list[str]:
    problems = []
    for section, key, example in (
        ("run", "dir", "runs/first"),
        ("data", "shards", "the directory made by python -m shards pack"),
    ):
        if not (raw.get(section) or {}).get(key):
            problems.append(f"{section}.{key} is not given; add {section}.{key}={example}")
    select_by = (raw.get("train") or {}).get("select_by")
    problem = metric_problem(str(select_by)) if select_by is not None else None
    if problem:
        problems.append(f"train.select_by: {problem}")
    return problems


def prepare_run(
    config: Config,
    world: World,
    checkpoint: Path | None,
    mark: Callable[[str], None] = lambda part: None,
) -> PreparedRun:
    """Check data and batch arithmetic, build or load the model, start the loaders.

    `checkpoint` is the intact one that the run resumes from, None for a new run.
    No collective and no device: every rank raises the same `UserError`. The one exception is a tar
    whose size is not the packed one, which one rank of each machine finds. `mark` is called with
    the name of each finished part: data, model, read back, loader.
    """
    run_dir = Path(str(config.run.dir))
    if config.data.num_workers:  # "auto" is never 0
        start_forkserver()
    manifest = load_manifest(str(config.data.shards))
    classes = class_map(manifest.classes, config.data.classes)
    train, validation = _splits(config, manifest, classes, world)
    wants_own_labels = auxiliary_weights(config.model.auxiliary)
    if wants_own_labels and checkpoint is None:
        _require_own_labels(wants_own_labels, str(config.data.shards), train, classes)
    plan = batch_plan(
        len(train),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=world.world_size,
        drop_last=config.data.drop_last,
        groups=config.data.groups,
    )
    data = RunData(
        # Without its shards, which take 2 KiB each: the readers hold them as arrays.
        manifest=manifest.model_copy(update={"splits": {}}),
        plan=plan,
        label_names=classes.names,
        class_counts=train.class_counts().tolist(),
        num_validation_samples=len(validation),
    )
    mark("data")
    state = TrainingState() if checkpoint is None else _state_of(checkpoint, run_dir)
    parts = build_or_load(config, checkpoint, train, manifest, classes.names)
    check_taken_by_launch(parts.model, config, world)
    mark("model")
    if checkpoint is None:  # a checkpoint's export has just been read
        check_read_back(config, parts, len(classes.names))
        mark("read back")
    num_steps = plan.num_steps(config.train.epochs, config.train.max_steps)
    need = _disk_need(config, run_dir, parts.model, plan, world, (state.step, num_steps))
    check_room(need, run_dir)
    label_classes = {
        "soft_classes": classes if manifest.has_soft_labels else None,
        "modality_classes": classes if wants_own_labels else None,
    }
    steps = (state.step, num_steps)
    loaders = _loaders(config, train, validation, plan, world, steps, parts, label_classes)
    mark("loader")
    return PreparedRun(
        config=config,
        run_dir=run_dir,
        num_steps=num_steps,
        data=data,
        loaders=loaders,
        parts=parts,
        state=state,
        resumed_from=checkpoint,
        disk_need=need,
    )


def _splits(
    config: Config, manifest: Manifest, classes: ClassMap, world: World
) -> tuple[SplitReader, SplitReader]:
    """Readers of the training and the validation split; `UserError` where one cannot be used."""
    require_train_and_val(str(config.data.shards), manifest)
    train = SplitReader(str(config.data.shards), manifest, "train", classes)
    validation = SplitReader(str(config.data.shards), manifest, "val", classes)
    if not len(validation):
        raise UserError(
            f"the validation split of {config.data.shards} is empty, but the best export is chosen "
            f"on it. {how_to_fill(manifest, 'val')}"
        )
    if world.local_rank == 0:  # once per machine, because each may have its own copy
        for reader in (train, validation):
            reader.check_tars()
    return train, validation


def _require_own_labels(
    wanted: Collection[str], shards: str, train: SplitReader, classes: ClassMap
) -> None:
    """Raise `UserError` where no sample has the label that an auxiliary head would be trained on.

    Samples without one are trained on the pair's label alone; the log says how many.
    """
    shares = shares_with_labels(train, classes)
    missing = [modality for modality in wanted if not shares[modality]]
    if missing:
        names = " and ".join(f"{modality}_label" for modality in missing)
        keys = " and ".join(f"model.auxiliary.{modality}" for modality in missing)
        raise UserError(
            f"{keys} cannot be used: the samples of {shards} that were looked at have no {names} "
            "of the model's classes. MVSA packed by mvsa-single or mvsa-multiple has them; for "
            f"this set use {keys.replace(' and ', '=0 ')}=0"
        )
    for modality in wanted:
        if shares[modality] < 1:
            logger.info(
                "%.1f %% of the training samples that were looked at have no %s label of their "
                "own, and are trained on the pair's label alone",
                100 * (1 - shares[modality]),
                modality,
            )


def _disk_need(
    config: Config,
    run_dir: Path,
    model: SentimentModel,
    plan: BatchPlan,
    world: World,
    steps: tuple[int, int],
) -> DiskNeed:
    """The space that the checkpoints and exports of `steps` (first, end) will need."""

    def times(every_steps: int | None) -> int:
        first, end = steps
        return math.ceil((end - first) / (every_steps or plan.steps_per_epoch))

    return disk_need(
        run_dir,
        model,
        world_size=world.world_size,
        keep_checkpoints=config.train.keep_checkpoints,
        averaged=config.train.ema is not None,
        saves_to_come=times(config.train.checkpoint_every_steps),
        validations_to_come=times(config.train.validate_every_steps),
    )


def _state_of(checkpoint: Path, run_dir: Path) -> TrainingState:
    saved = checkpoints.read_state(checkpoint)
    state = TrainingState(**{name: saved[name] for name in vars(TrainingState())})
    best = state.best_step
    if best is None:
        return state
    export = export_path(run_dir, best)
    what = "is missing"
    if export.is_dir():
        problems = damage_of_export(export)
        what = f"is damaged ({'; '.join(problems)})" if problems else ""
    if what:
        logger.warning("%s %s: the next validation counts as the best", export, what)
        state.best_value = state.best_step = None
    return state


def _augmentation(config: Config) -> Augmentation | None:
    """What happens to training images at random; None: nothing."""
    data, auto = config.data, None
    if data.auto_augment != "none":
        auto = AutoAugment(
            data.auto_augment, data.auto_augment_operations, data.auto_augment_magnitude
        )
    if not data.augment and auto is None:
        return None
    return Augmentation(
        config.run.seed, data.min_crop_scale, data.flip_probability, data.augment, auto
    )


def _loaders(
    config: Config,
    train: SplitReader,
    validation: SplitReader,
    plan: BatchPlan,
    world: World,
    steps: tuple[int, int],
    parts: ModelParts,
    label_classes: dict[str, ClassMap | None],
) -> RunLoaders:
    """Start the loaders of this rank, for `steps` (first, end) and for every validation."""
    train_requests = TrainRequests(
        reader=train,
        plan=plan,
        rank=world.rank,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
        bucket_by_length=config.data.bucket_by_length and parts.tokenizer is not None,
        start_step=steps[0],
        stop_step=steps[1],
        read_ahead=(world.local_rank, world.local_world_size) if config.data.read_ahead else None,
    )
    validation_requests = EvaluationRequests(
        validation, config.eval.batch_size, world.world_size, world.rank, repeat=True
    )

    on_gpu = torch.cuda.is_available()
    layout = text_layout(parts.model, config.gpu)
    num_workers = loader_workers(config.data.num_workers, world)
    downloads = start_downloads(train_requests, validation_requests, world, num_workers)

    def loader(requests: TrainRequests | EvaluationRequests, **more: Any) -> Loader:
        return Loader(
            requests,
            parts.preprocessing,
            parts.tokenizer,
            num_workers,
            # A batch that is copied to the GPU ahead (`Run`) is pinned there.
            pin_memory=on_gpu and not config.gpu.copy_stream,
            timeout_s=config.data.timeout_s,
            layout=layout,
            **more,
        )

    share = config.data.modality_dropout
    dropout = None
    if share.text or share.image:
        dropout = ModalityDropout(config.run.seed, share.text, share.image)
    of_training = {"augmentation": _augmentation(config), "dropout": dropout, **label_classes}
    return RunLoaders(
        train=loader(train_requests, **of_training),
        validation=loader(validation_requests, modality_classes=label_classes["modality_classes"]),
        num_validation_batches=len(validation_requests),
        downloads=downloads,
    )
