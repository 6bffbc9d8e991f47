"""A run made ready: data, batch arithmetic, tokenizer, model, loaders.

Pure checks and files alone, no collective and no device: every rank finds the same problems.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmsa.config import Check, Config, TextEncoderConfig
from mmsa.data.batch_requests import EvaluationRequests, TrainRequests
from mmsa.data.loading.workers import start_forkserver
from mmsa.data.manifest import Manifest, load_manifest
from mmsa.data.plan import BatchPlan, batch_plan
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Augmentation, Loader
from mmsa.data.text import TextTokenizer, load_tokenizer, word_tokenizer
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import metric_problem
from mmsa.export import (
    CHECKPOINT_EXPORT_NAME,
    TOKENIZER_NAME,
    load_model,
    load_tokenizer_of,
    read_export,
)
from mmsa.labels import ClassMap, class_map
from mmsa.models.fusion import fusion_class, fusion_problems
from mmsa.models.model import SentimentModel, build_model
from mmsa.models.weights import is_export
from mmsa.preprocessing import Preprocessing
from mmsa.process.runtime import World
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.checkpoints.best_export import export_path
from mmsa.training.checkpoints.disk_space import check_room, disk_need
from mmsa.training.model_for_engine import check_taken_by_engine
from mmsa.training.run import Run, TrainingState

logger = logging.getLogger("mmsa")

_WORDS_READ = 100_000  # samples of the train split whose words a `words:N` tokenizer counts


def training_checks() -> list[Check]:
    """What a training run asks of its settings beyond their types."""
    return [_required_problems, fusion_problems]


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
    config: Config, run_dir: Path, world: World, mark: Callable[[str], None] = lambda part: None
) -> Run:
    """Check data and batch arithmetic, build or load the model, start the loaders.

    No collective and no device: every rank raises the same `UserError`, but for a tar without the
    size that was packed, which one rank of each machine finds. `mark` is told the name of each part
    that is done: data, model, loader.
    """
    if config.data.num_workers:
        start_forkserver()
    manifest = load_manifest(str(config.data.shards))
    classes = class_map(manifest.classes, config.data.classes)
    train = SplitReader(str(config.data.shards), manifest, "train", classes)
    validation = SplitReader(str(config.data.shards), manifest, "val", classes)
    if not len(validation):
        raise UserError(
            f"the validation split of {config.data.shards} is empty; the best export is chosen on "
            "it. Pack with a share for it (--ratios 8:1:1)"
        )
    if world.local_rank == 0:  # one look for each machine, which may have a copy of its own
        for reader in (train, validation):
            reader.shards.check_tars(reader.directory)
    plan = batch_plan(
        len(train),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=world.world_size,
        drop_last=config.data.drop_last,
    )
    mark("data")
    checkpoint = checkpoints.newest_checkpoint(run_dir)
    progress = TrainingState()
    if checkpoint is not None:
        progress = _progress_of(checkpoint, run_dir)
    model, tokenizer = _model_and_tokenizer(config, checkpoint, train, len(classes.names))
    check_taken_by_engine(model, world)
    preprocessing = _preprocessing(config, model, manifest)
    mark("model")
    num_steps = config.train.epochs * plan.steps_per_epoch
    if config.train.max_steps is not None:
        num_steps = min(num_steps, config.train.max_steps)
    need = disk_need(
        run_dir,
        model,
        world_size=world.world_size,
        keep_checkpoints=config.train.keep_checkpoints,
        saves_to_come=_times(config.train.checkpoint_every_steps, plan, progress.step, num_steps),
        validations_to_come=_times(
            config.train.validate_every_steps, plan, progress.step, num_steps
        ),
    )
    check_room(need, run_dir)
    train_loader, validation_loader, num_validation_batches = _loaders(
        config,
        train,
        validation,
        plan,
        world,
        (progress.step, num_steps),
        preprocessing,
        tokenizer,
        classes if manifest.has_soft_labels else None,
    )
    mark("loader")
    return Run(
        config=config,
        run_dir=run_dir,
        # Without its shards, which take 2 KiB each: the readers hold them as arrays.
        manifest=manifest.model_copy(update={"splits": {}}),
        plan=plan,
        num_steps=num_steps,
        label_names=classes.names,
        preprocessing=preprocessing,
        tokenizer=tokenizer,
        bare_model=model,
        train_batches=train_loader,
        validation_batches=validation_loader,
        num_validation_batches=num_validation_batches,
        num_validation_samples=len(validation),
        class_counts=train.class_counts().tolist(),
        progress=progress,
        checkpoint=checkpoint,
        disk_need=need,
    )


def _times(every_steps: int | None, plan: BatchPlan, step: int, num_steps: int) -> int:
    """How often a thing is done after `step` that is due every so many steps and at the end."""
    return math.ceil((num_steps - step) / (every_steps or plan.steps_per_epoch))


def _progress_of(checkpoint: Path, run_dir: Path) -> TrainingState:
    state = checkpoints.read_state(checkpoint)
    progress = TrainingState(**{name: state[name] for name in vars(TrainingState())})
    best = progress.best_step
    if best is not None and not export_path(run_dir, best).is_dir():
        logger.warning("%s is gone: the next validation has the best", export_path(run_dir, best))
        progress.best_value = progress.best_step = None
    return progress


def _model_and_tokenizer(
    config: Config, checkpoint: Path | None, train: SplitReader, num_classes: int
) -> tuple[SentimentModel, TextTokenizer | None]:
    if checkpoint is not None:
        export = read_export(checkpoint / CHECKPOINT_EXPORT_NAME)
        model = load_model(export)
        for encoder in (model.text_encoder, model.image_encoder):
            if encoder is not None:
                encoder.source = f"the checkpoint {checkpoint.name}"
        return model, load_tokenizer_of(export)
    tokenizer = None
    if fusion_class(config.model.fusion.name).uses_text:
        tokenizer = _tokenizer(config, train)
    torch.manual_seed(config.run.seed)  # fresh weights are the same on every rank
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    return build_model(config.model, num_classes, vocab_size=vocab_size), tokenizer


def tokenizer_name(encoder: TextEncoderConfig) -> str:
    """The name or directory of a text encoder's tokenizer, or words:N."""
    if encoder.tokenizer is None and encoder.weights not in ("none", "pretrained"):
        # The token ids that these weights were trained with, whatever the shards hold.
        weights = Path(encoder.weights).expanduser()
        return str(weights / TOKENIZER_NAME if is_export(weights) else weights)
    return encoder.tokenizer or encoder.name


def _tokenizer(config: Config, train: SplitReader) -> TextTokenizer:
    name, max_tokens = tokenizer_name(config.model.text_encoder), config.data.max_tokens
    if name.startswith("words:"):
        if not name[6:].isdecimal() or int(name[6:]) < 1:
            raise UserError(
                f"model.text_encoder.tokenizer={name!r}: expected words:N, as in words:8000"
            )
        texts = (train.read(*place).text for place in islice(train.places(), _WORDS_READ))
        return word_tokenizer(texts, int(name[6:]), max_tokens)
    return load_tokenizer(name, max_tokens)


def _preprocessing(config: Config, model: SentimentModel, manifest: Manifest) -> Preprocessing:
    text_encoder, image_encoder = model.text_encoder, model.image_encoder
    max_tokens = None
    if text_encoder is not None:
        max_tokens = config.data.max_tokens
        if text_encoder.max_positions is not None and max_tokens > text_encoder.max_positions:
            raise UserError(
                f"data.max_tokens={max_tokens}, but {config.model.text_encoder.name} reads "
                f"{text_encoder.max_positions} tokens at most; use data.max_tokens="
                f"{text_encoder.max_positions} or fewer"
            )
    packed_px = manifest.packing["image_short_side_px"]  # None: original pictures
    image = None if image_encoder is None else image_encoder.preprocessing
    if image is not None and packed_px is not None and image.image_size_px > packed_px:
        logger.warning(
            "the image encoder takes %d px and the pictures are packed with a short side of %d px: "
            "each one is enlarged. Pack with --image-short-side %d for sharper ones",
            image.image_size_px,
            packed_px,
            image.resize_px,
        )
    return Preprocessing(
        image=image,
        image_view=config.data.image_view,
        packed_mode=manifest.packing.get("image_mode", "short_side"),
        packed_short_side_px=packed_px,
        packed_normalize=tuple(manifest.source.get("facts", {}).get("normalize", ())),
        packed_quality=int(manifest.packing["image_quality"]),
        max_tokens=max_tokens,
    )


def _loaders(
    config: Config,
    train: SplitReader,
    validation: SplitReader,
    plan: BatchPlan,
    world: World,
    steps: tuple[int, int],
    preprocessing: Preprocessing,
    tokenizer: TextTokenizer | None,
    soft_classes: ClassMap | None,
) -> tuple[Loader, Loader, int]:
    train_requests = TrainRequests(
        reader=train,
        plan=plan,
        rank=world.rank,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
        bucket_by_length=config.data.bucket_by_length and tokenizer is not None,
        start_step=steps[0],
        stop_step=steps[1],
    )
    validation_requests = EvaluationRequests(
        validation, config.eval.batch_size, world.world_size, world.rank, repeat=True
    )
    augmentation = None
    if config.data.augment:
        augmentation = Augmentation(
            config.run.seed, config.data.min_crop_scale, config.data.flip_probability
        )
    workers, pinned = config.data.num_workers, torch.cuda.is_available()
    timeout_s = config.data.timeout_s
    return (
        Loader(
            train_requests,
            preprocessing,
            tokenizer,
            workers,
            augmentation,
            pinned,
            soft_classes,
            timeout_s,
        ),
        Loader(
            validation_requests,
            preprocessing,
            tokenizer,
            workers,
            pin_memory=pinned,
            timeout_s=timeout_s,
        ),
        len(validation_requests),
    )
