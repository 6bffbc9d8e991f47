"""One run on one rank: its parts, where it stands, and what all ranks do together.

`setup.py` makes it ready, `train.py` tells the story with it; nothing here knows of the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmsa.calibration import Calibration
from mmsa.config import Config
from mmsa.data.audit_files import AuditWriter
from mmsa.data.manifest import Manifest
from mmsa.data.plan import BatchPlan
from mmsa.data.stream import Batch
from mmsa.data.text import TextTokenizer
from mmsa.engines import engine
from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics, selection_value
from mmsa.export import code_version, whole_checkpoints, write_export
from mmsa.models.batchnorm import averaged_statistics, running_statistics, with_statistics
from mmsa.models.model import ParameterCount, SentimentModel, count_parameters, parameter_groups
from mmsa.preprocessing import Preprocessing
from mmsa.training.checkpoints import best_export
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.checkpoints.collective_write import WriteError, together
from mmsa.training.checkpoints.disk_space import DiskNeed
from mmsa.training.checkpoints.resume import config_sha256, continuation_in_words
from mmsa.training.model_for_engine import adapt_to_launch, rehearse
from mmsa.training.nonfinite_guard import NonfiniteGuard
from mmsa.training.optim import build_optimizer
from mmsa.training.profile import StepProfile

logger = logging.getLogger("mmsa")


@dataclass
class TrainingState:
    """Where a run stands, and what of it is no function of the step."""

    step: int = 0
    best_value: float | None = None  # as `selection_value`: more is better
    best_step: int | None = None
    validations_since_best: int = 0
    validated_step: int = 0
    stopped_early: bool = False


@dataclass
class Run:
    """All parts of a run on this rank. `to_device` completes it."""

    config: Config
    run_dir: Path
    manifest: Manifest
    plan: BatchPlan
    num_steps: int
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    tokenizer: TextTokenizer | None
    bare_model: SentimentModel
    train_batches: Iterator[Batch]
    validation_batches: Iterator[Batch]
    num_validation_batches: int
    num_validation_samples: int
    class_counts: list[int]
    progress: TrainingState
    checkpoint: Path | None
    disk_need: DiskNeed
    accelerator: Accelerator = field(init=False)
    parameter_counts: dict[str, ParameterCount] = field(init=False)
    model: torch.nn.Module = field(init=False)
    optimizer: Any = field(init=False)
    guard: NonfiniteGuard = field(init=False)
    profile: StepProfile = field(init=False)
    class_weights: Tensor | None = field(init=False, default=None)
    audit: AuditWriter | None = field(init=False, default=None)
    validated: Predictions | None = field(init=False, default=None)  # of the last validation

    def to_device(self, accelerator: Accelerator) -> None:
        """Wrap model and optimizer for the launch, and restore what a checkpoint holds."""
        self.accelerator = accelerator
        profiled = self.config.run.profile and accelerator.is_main_process
        self.profile = StepProfile(self.run_dir, accelerator.device, enabled=profiled)
        self.parameter_counts = count_parameters(self.bare_model)  # ZeRO-3 leaves empty tensors
        adapt_to_launch(self.bare_model, self.config, deepspeed=engine.is_deepspeed(accelerator))
        optimizer = build_optimizer(parameter_groups(self.bare_model), self.config.optim)
        self.guard = NonfiniteGuard(
            optimizer,
            self.bare_model,
            accelerator,
            keep_statistics=self.config.train.on_nonfinite == "skip",
        )
        self.model, self.optimizer = accelerator.prepare(self.bare_model, optimizer)
        if isinstance(self.model, DistributedDataParallel) and not self.config.train.compile:
            rehearse(self.model, self.bare_model)
        if self.checkpoint is not None:
            checkpoints.restore(
                self.checkpoint,
                accelerator=accelerator,
                model=self.bare_model,
                optimizer=self.optimizer,
            )
        if accelerator.is_main_process:
            checkpoints.keep_newest(self.run_dir, self.config.train.keep_checkpoints)
            best_export.settle_best(self.run_dir, self.progress.best_step, self._best_steps())
        if self.config.run.audit:
            self.audit = AuditWriter(
                self.run_dir,
                start_step=self.progress.step,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
            )
        if self.config.model.class_weights == "balanced":
            self.class_weights = balanced_weights(self.class_counts).to(accelerator.device)

    def log_facts(self, launch: dict[str, Any]) -> None:
        """Say at start-up what really is: launch, batches, data, weights, parameters."""
        logger.info("launch: %s", ", ".join(f"{name} {value}" for name, value in launch.items()))
        logger.info("batches: %s", self.plan.in_words())
        counts = zip(self.label_names, self.class_counts, strict=True)
        logger.info(
            "data: %s, protocol %s, digest %s; train: %s; val: %d samples",
            self.manifest.dataset,
            self.manifest.protocol.name,
            self.manifest.digest[:12],
            ", ".join(f"{number} {name}" for name, number in counts),
            self.num_validation_samples,
        )
        encoders = {"text": self.bare_model.text_encoder, "image": self.bare_model.image_encoder}
        for name, encoder in encoders.items():
            if encoder is not None:
                logger.info("weights of the %s encoder: %s", name, encoder.source)
                if encoder.unused:
                    logger.info("not trained, because unused: %s", ", ".join(encoder.unused))
        for part, (trained, frozen) in self.parameter_counts.items():
            logger.info(
                "parameters of %s: %s trained, %s frozen", part, f"{trained:,}", f"{frozen:,}"
            )
        if self.checkpoint is not None:
            logger.info("resumed from %s at step %d", self.checkpoint, self.progress.step)
            for words in continuation_in_words(
                checkpoints.read_state(self.checkpoint),
                engine=launch["engine"],
                world_size=launch["world_size"],
                batchnorm=self._counts_statistics(),
            ):
                logger.info("%s", words)
        logger.info("disk: %s", self.disk_need.in_words())

    def _counts_statistics(self) -> bool:
        """Whether training changes BatchNorm statistics, each rank its own."""
        frozen = self.config.model.image_encoder.batch_norm == "frozen"
        return bool(running_statistics(self.bare_model)) and not frozen

    def validate(self) -> dict[str, Any]:
        """Validation metrics, with the ranks' mean BatchNorm statistics; collective."""
        statistics = averaged_statistics(self.bare_model, self.accelerator)
        with with_statistics(self.bare_model, statistics):
            self.validated, _ = predict_split(
                self.bare_model,
                self.validation_batches,
                self.num_validation_batches,
                accelerator=self.accelerator,
                label_names=self.label_names,
                num_samples=self.num_validation_samples,
                progress="validating",
            )
        # All ranks hold the same predictions, so all decide alike without a further collective.
        return compute_metrics(self.validated)

    def keep_if_best(self, metrics: dict[str, Any]) -> None:
        """Export the model if it is the best so far; count towards early stopping."""
        select_by, patience = self.config.train.select_by, self.config.train.patience
        value = selection_value(metrics, select_by)
        best = self.progress.best_value
        if best is None or value > best:
            self.progress.best_value, self.progress.best_step = value, self.progress.step
            self.progress.validations_since_best = 0
            self._write_best()
        else:
            self.progress.validations_since_best += 1
        self.progress.validated_step = self.progress.step
        self.progress.stopped_early = (
            patience is not None and self.progress.validations_since_best >= patience
        )

    def _write_best(self) -> None:
        statistics = averaged_statistics(self.bare_model, self.accelerator)
        weights = gather_weights(self.bare_model, self.optimizer, self.accelerator)

        def write() -> None:
            if weights is not None:
                best_export.write_best(
                    self.run_dir,
                    self.progress.step,
                    lambda directory: self._write_export(
                        directory, weights, statistics, self._calibration()
                    ),
                )

        try:
            together(self.accelerator, write)
        except WriteError as error:
            raise AgreedError(
                f"the export of step {self.progress.step} could not be written: {error}. "
                f"Make room in {self.run_dir} and repeat the command"
            ) from None

    def newest_checkpoint(self) -> str:
        """The newest whole checkpoint in words: its name, or that there is none."""
        newest = checkpoints.newest_checkpoint(self.run_dir)
        return "none yet" if newest is None else newest.name

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, and remove those beyond the newest k; collective."""
        if self.audit is not None:
            self.audit.flush()
        statistics = averaged_statistics(self.bare_model, self.accelerator)
        checkpoints.save_checkpoint(
            self.run_dir,
            self.progress.step,
            accelerator=self.accelerator,
            model=self.bare_model,
            optimizer=self.optimizer,
            write_export=lambda directory, weights: self._write_export(
                directory, weights, statistics
            ),
            state={
                **vars(self.progress),
                "epoch": self.progress.step // self.plan.steps_per_epoch,
                "engine": engine.engine_name(self.accelerator),
                "world_size": self.accelerator.num_processes,
                "mixed_precision": engine.precision(self.accelerator),
                "shards_digest": self.manifest.digest,
                "config_sha256": config_sha256(self.config),
                "code_version": code_version(),
            },
        )
        if self.accelerator.is_main_process:
            checkpoints.keep_newest(self.run_dir, self.config.train.keep_checkpoints)
            best_export.keep_exports(self.run_dir, self._best_steps())

    def _best_steps(self) -> set[int]:
        """The best steps that this run or one of its checkpoints speaks of."""
        states = map(checkpoints.read_state, whole_checkpoints(self.run_dir))
        steps = {self.progress.best_step, *(state["best_step"] for state in states)}
        return {step for step in steps if step is not None}

    def _calibration(self) -> Calibration:
        """The temperature for the model as it was just validated."""
        assert self.validated is not None
        return fit(self.validated, split="val", shards_digest=self.manifest.digest)

    def _write_export(
        self,
        directory: Path,
        weights: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        calibration: Calibration | None = None,
    ) -> None:
        write_export(
            directory,
            self.bare_model,
            weights,
            statistics=statistics,
            config=self.config,
            label_names=self.label_names,
            preprocessing=self.preprocessing,
            tokenizer=self.tokenizer,
            facts={
                "step": self.progress.step,
                "dataset": self.manifest.dataset,
                "shards_digest": self.manifest.digest,
                "protocol": self.manifest.protocol.model_dump(mode="json"),
                "mixed_precision": engine.precision(self.accelerator),
            },
            calibration=calibration,
        )


def balanced_weights(class_counts: list[int]) -> Tensor:
    """Weights (C,) inverse to the classes' frequency, whose mean over the training split is 1."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    num_present = (counts > 0).sum()
    return (counts.sum() / (num_present * counts.clamp(min=1))).float()
