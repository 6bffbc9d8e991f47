"""A run on this rank with its engine: everything that the ranks do together outside a step.

`setup.prepare_run` prepares it, `train.py` tells its story; nothing here knows the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmsa.calibration import FITTED_ON, Calibration, described
from mmsa.checkpoint_folders import whole_checkpoints
from mmsa.data.audit_files import AuditWriter
from mmsa.engines import engine
from mmsa.engines.compiled import CompileWatch
from mmsa.engines.weight_average import WeightAverage
from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError
from mmsa.evaluation.auxiliary_scores import AuxiliaryScores
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics, selection_value
from mmsa.export import code_version, write_export
from mmsa.lineage import HISTORY_KEY
from mmsa.models.batchnorm import averaged_statistics, with_statistics
from mmsa.models.model import count_parameters
from mmsa.training.agreement import check_agreement
from mmsa.training.checkpoints import best_export
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.checkpoints.collective_write import WriteError, together
from mmsa.training.checkpoints.disk_space import not_written
from mmsa.training.checkpoints.resume import config_sha256
from mmsa.training.checkpoints.run_config import settle_config
from mmsa.training.model_for_engine import adapt_to_launch, give_packed_attention, rehearse
from mmsa.training.nonfinite_guard import NonfiniteGuard
from mmsa.training.objective import Objective
from mmsa.training.optim import optimizer_of
from mmsa.training.prepared_run import PreparedRun
from mmsa.training.profile import StepProfile
from mmsa.training.tracking import Tracker

logger = logging.getLogger("mmsa")


class Run:
    """A prepared run whose model and optimizer the engine has wrapped.

    From preparation: `config`, `run_dir`, `num_steps`, `data`, `loaders`, `parts`, `state`,
    `resumed_from`, `disk_need` (prepared_run.py). `bare_model` is the model itself, `model` what
    the engine made of it; both share their weights.
    """

    def __init__(self, prepared: PreparedRun, accelerator: Accelerator) -> None:
        """Wrap model and optimizer for the launch, and restore what a checkpoint holds.

        A collective: all ranks call it. The main rank also removes what an interrupted launch left
        in the run directory, and writes `config.yaml` for a new run.
        """
        self.config, self.run_dir = prepared.config, prepared.run_dir
        self.num_steps, self.state = prepared.num_steps, prepared.state
        self.data, self.loaders, self.parts = prepared.data, prepared.loaders, prepared.parts
        self.resumed_from, self.disk_need = prepared.resumed_from, prepared.disk_need
        self.accelerator = accelerator
        if accelerator.device.type == "cuda" and self.config.gpu.copy_stream:
            self.loaders.send_to(accelerator.device)
        self.bare_model = self.parts.model
        self.parameter_counts = count_parameters(self.bare_model)  # ZeRO-3 leaves empty tensors
        profiled = self.config.run.profile and accelerator.is_main_process
        self.profile = StepProfile(self.run_dir, accelerator.device, enabled=profiled)
        encoders = (self.bare_model.text_encoder, self.bare_model.image_encoder)
        sources = tuple("" if encoder is None else encoder.source for encoder in encoders)
        check_agreement(self.run_dir, self.state, sources)
        self._wrap()
        self.audit: AuditWriter | None = None
        if self.config.run.audit:
            self.audit = AuditWriter(
                self.run_dir,
                start_step=self.state.step,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
            )
        self.objective = Objective(self.config.model, self.data.class_counts, accelerator.device)
        self.validated: Predictions | None = None  # by the last validation
        self._run_config = ""  # the content of config.yaml, on the main rank
        if accelerator.is_main_process:
            checkpoints.keep_newest(self.run_dir, self.config.train.keep_checkpoints)
            best_export.settle_best(self.run_dir, self.state.best_step, self._best_steps())
            self._run_config = settle_config(self.run_dir, self.resumed_from, self.config)

    def _wrap(self) -> None:
        give_packed_attention(self.bare_model, self.config.gpu, self.accelerator)
        self.compile_watch = CompileWatch(enabled=self.config.train.compile)
        adapt_to_launch(
            self.bare_model, self.config, deepspeed=engine.is_deepspeed(self.accelerator)
        )
        optimizer = optimizer_of(self.bare_model, self.config.optim)
        self.guard = NonfiniteGuard(
            optimizer,
            self.bare_model,
            self.accelerator,
            on_nonfinite=self.config.train.on_nonfinite,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.bare_model, optimizer)
        if isinstance(self.model, DistributedDataParallel) and not self.config.train.compile:
            rehearse(self.model, self.bare_model)
        self.average: WeightAverage | None = None
        decay = self.config.train.ema
        if decay is not None:
            wrapped = (self.bare_model, self.optimizer, self.accelerator)
            self.average = WeightAverage(*wrapped, decay)
        if self.resumed_from is not None:
            checkpoints.restore(
                self.resumed_from,
                accelerator=self.accelerator,
                model=self.bare_model,
                optimizer=self.optimizer,
                average=self.average,
            )

    def is_due(self, every_steps: int | None) -> bool:
        """Whether something is due after the current step: every so many steps (None: once an
        epoch), and after the last one."""
        step = self.state.step
        return step % (every_steps or self.data.plan.steps_per_epoch) == 0 or step == self.num_steps

    def owes_validation(self) -> bool:
        """Whether the run was stopped between a step and the validation that was due after it."""
        due = self.is_due(self.config.train.validate_every_steps)
        return due and self.state.validated_step < self.state.step

    def make_tracker(self) -> Tracker:
        """What writes this run's metrics from here on; does nothing on all ranks but the main."""
        return Tracker(
            self.run_dir,
            start_step=self.state.step,
            num_steps=self.num_steps,
            enabled=self.accelerator.is_main_process,
            samples_per_step=self.data.plan.global_batch_size,
            config=self.config,
        )

    def last_save_s(self) -> float | None:
        """Seconds that the last save of this run took; None where none is known."""
        return checkpoints.last_save_s(self.run_dir)

    def validate(self) -> dict[str, Any]:
        """Validation metrics of the weights that are exported; a collective.

        With auxiliary heads also their scores, under `auxiliary` by modality.
        """
        statistics = self._exported_statistics()
        of_heads = None
        if self.bare_model.auxiliary is not None:
            names = list(self.bare_model.auxiliary)
            of_heads = AuxiliaryScores(names, len(self.data.label_names))
        with self._exported_weights(), with_statistics(self.bare_model, statistics):
            self.validated, _ = predict_split(
                self.bare_model,
                self.loaders.validation,
                self.loaders.num_validation_batches,
                accelerator=self.accelerator,
                label_names=self.data.label_names,
                num_samples=self.data.num_validation_samples,
                progress="validating",
                of_heads=of_heads,
            )
        # All ranks hold the same predictions, so all decide alike without a further collective.
        metrics = compute_metrics(self.validated)
        if of_heads is not None:
            metrics["auxiliary"] = of_heads.scores()
        return metrics

    def _exported_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights of its exports: with `train.ema` their average."""
        return nullcontext() if self.average is None else self.average.applied()

    def _exported_statistics(self) -> dict[str, Tensor]:
        """The BatchNorm statistics of exports, the mean over the ranks; a collective."""
        own = None if self.average is None else self.average.statistics
        return averaged_statistics(self.bare_model, self.accelerator, own)

    def keep_if_best(self, metrics: dict[str, Any]) -> None:
        """Export the model if it is the best so far; count towards early stopping. A collective."""
        select_by, patience = self.config.train.select_by, self.config.train.patience
        state, value = self.state, selection_value(metrics, select_by)
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step = value, state.step
            state.validations_since_best = 0
            self._write_best()
        else:
            state.validations_since_best += 1
        state.validated_step = state.step
        state.stopped_early = patience is not None and state.validations_since_best >= patience

    def _write_best(self) -> None:
        statistics = self._exported_statistics()
        try:
            with self._exported_weights():
                weights = gather_weights(self.bare_model, self.optimizer, self.accelerator)
                write = partial(self._write_best_export, weights, statistics)
                together(self.accelerator, write)
        except WriteError as error:
            what = f"the export of step {self.state.step}"
            raise AgreedError(not_written(what, self.run_dir, error)) from None

    def _write_best_export(
        self, weights: Mapping[str, Tensor] | None, statistics: Mapping[str, Tensor]
    ) -> None:
        """On the rank that has the weights."""
        if weights is None:
            return
        best_export.write_best(
            self.run_dir,
            self.state.step,
            lambda directory: self._write_export(
                directory, weights, statistics, self._calibration()
            ),
        )

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, and remove those beyond the newest k. A collective."""
        if self.audit is not None:
            self.audit.flush()
        statistics = self._exported_statistics()
        checkpoints.save_checkpoint(
            self.run_dir,
            self.state.step,
            accelerator=self.accelerator,
            model=self.bare_model,
            optimizer=self.optimizer,
            average=self.average,
            write_export=lambda directory, weights: self._write_export(
                directory, weights, statistics
            ),
            state={
                **vars(self.state),
                "epoch": self.state.step // self.data.plan.steps_per_epoch,
                "engine": engine.engine_name(self.accelerator),
                "world_size": self.accelerator.num_processes,
                "mixed_precision": engine.precision(self.accelerator),
                "shards_digest": self.data.manifest.digest,
                "config_sha256": config_sha256(self.config),
                "code_version": code_version(),
            },
            run_config=self._run_config,
        )
        if self.accelerator.is_main_process:
            checkpoints.keep_newest(self.run_dir, self.config.train.keep_checkpoints)
            best_export.keep_exports(self.run_dir, self._best_steps())

    def _best_steps(self) -> set[int]:
        """The best steps that this run or one of its checkpoints refers to."""
        known = map(checkpoints.best_step_of, whole_checkpoints(self.run_dir))
        steps = {self.state.best_step, *known}
        return {step for step in steps if step is not None}

    def _calibration(self) -> Calibration:
        """The temperature for the model as it was just validated, or why there is none."""
        assert self.validated is not None
        fitted = fit(self.validated, split=FITTED_ON, shards_digest=self.data.manifest.digest)
        if fitted.temperature is None:
            logger.warning("export of step %d: %s", self.state.step, described(fitted))
        return fitted

    def _write_export(
        self,
        directory: Path,
        weights: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        calibration: Calibration | None = None,
    ) -> None:
        manifest, history = self.data.manifest, list(self.parts.history)
        write_export(
            directory,
            self.bare_model,
            weights,
            statistics=statistics,
            config=self.config,
            label_names=self.data.label_names,
            preprocessing=self.parts.preprocessing,
            tokenizer=self.parts.tokenizer,
            facts={
                "step": self.state.step,
                "dataset": manifest.dataset,
                "shards_digest": manifest.digest,
                "protocol": manifest.protocol.model_dump(mode="json"),
                "mixed_precision": engine.precision(self.accelerator),
                **({HISTORY_KEY: history} if history else {}),
            },
            calibration=calibration,
            sealed=False,  # by those who flush it
        )
