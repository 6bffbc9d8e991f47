"""A run on this rank with its engine: everything that the ranks do together outside a step.

`setup.prepare_run` prepares it, `train.py` tells its story; nothing here knows the loop.
"""

from __future__ import annotations

import logging
from typing import Any

from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from mmsa.calibration import FITTED_ON, Calibration, described
from mmsa.data.audit_files import AuditWriter
from mmsa.engines import engine
from mmsa.engines.compiled import CompileWatch
from mmsa.engines.weight_average import WeightAverage
from mmsa.evaluation.auxiliary_scores import AuxiliaryScores
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics, selection_value
from mmsa.models.batchnorm import with_statistics
from mmsa.models.model import count_parameters
from mmsa.training.agreement import check_agreement
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.model_for_engine import adapt_to_launch, give_packed_attention, rehearse
from mmsa.training.nonfinite_guard import NonfiniteGuard
from mmsa.training.objective import Objective
from mmsa.training.optim import optimizer_of
from mmsa.training.prepared_run import PreparedRun
from mmsa.training.profile import StepProfile
from mmsa.training.run_files import RunFiles
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
        self.files = RunFiles(prepared, accelerator, self.optimizer, self.average)

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

    def validate(self) -> dict[str, Any]:
        """Validation metrics of the weights that are exported; a collective.

        With auxiliary heads also their scores, under `auxiliary` by modality.
        """
        statistics = self.files.exported_statistics()
        of_heads = None
        if self.bare_model.auxiliary is not None:
            names = list(self.bare_model.auxiliary)
            of_heads = AuxiliaryScores(names, len(self.data.label_names))
        with self.files.exported_weights(), with_statistics(self.bare_model, statistics):
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

    def keep_if_best(self, metrics: dict[str, Any]) -> None:
        """Export the model if it is the best so far; count towards early stopping. A collective."""
        select_by, patience = self.config.train.select_by, self.config.train.patience
        state, value = self.state, selection_value(metrics, select_by)
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step = value, state.step
            state.validations_since_best = 0
            self.files.write_best(self._calibration)
        else:
            state.validations_since_best += 1
        state.validated_step = state.step
        state.stopped_early = patience is not None and state.validations_since_best >= patience

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, or begin to (`RunFiles`). A collective."""
        if self.audit is not None:
            self.audit.flush()
        self.files.save_checkpoint()

    def _calibration(self) -> Calibration:
        """The temperature for the model as it was just validated, or why there is none."""
        assert self.validated is not None
        fitted = fit(self.validated, split=FITTED_ON, shards_digest=self.data.manifest.digest)
        if fitted.temperature is None:
            logger.warning("export of step %d: %s", self.state.step, described(fitted))
        return fitted
