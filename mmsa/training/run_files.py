"""What a run writes of its model, the best export and the checkpoints; by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from mmsa.calibration import Calibration
from mmsa.checkpoint_folders import whole_checkpoints
from mmsa.engines import engine
from mmsa.engines.weight_average import WeightAverage
from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError
from mmsa.export import code_version, write_export
from mmsa.lineage import HISTORY_KEY
from mmsa.models.batchnorm import averaged_statistics
from mmsa.training.checkpoints import best_export
from mmsa.training.checkpoints import checkpoint as checkpoints
from mmsa.training.checkpoints.background import BackgroundSaves
from mmsa.training.checkpoints.collective_write import WriteError, together
from mmsa.training.checkpoints.disk_space import not_written
from mmsa.training.checkpoints.resume import config_sha256
from mmsa.training.checkpoints.run_config import settle_config
from mmsa.training.prepared_run import PreparedRun


class RunFiles:
    """The exports and checkpoints of a run whose model and optimizer the engine has wrapped."""

    def __init__(
        self,
        prepared: PreparedRun,
        accelerator: Accelerator,
        optimizer: Any,
        average: WeightAverage | None,
    ) -> None:
        """The main rank also removes what an interrupted launch left in the run directory, and
        writes `config.yaml` for a new run."""
        self._config, self._run_dir, self._state = prepared.config, prepared.run_dir, prepared.state
        self._data, self._parts, self._model = prepared.data, prepared.parts, prepared.parts.model
        self._accelerator, self._optimizer, self._average = accelerator, optimizer, average
        self._run_config = ""  # the content of config.yaml, on the main rank
        self._saves: BackgroundSaves | None = None
        if self._config.train.checkpoint_in_background:
            wrapped = (accelerator, self._model, optimizer, average)
            self._saves = BackgroundSaves(self._run_dir, *wrapped)
        if accelerator.is_main_process:
            checkpoints.keep_newest(self._run_dir, self._config.train.keep_checkpoints)
            best_export.settle_best(self._run_dir, self._state.best_step, self._best_steps())
            self._run_config = settle_config(self._run_dir, prepared.resumed_from, self._config)

    def exported_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights of its exports: with `train.ema` their average."""
        return nullcontext() if self._average is None else self._average.applied()

    def exported_statistics(self) -> dict[str, Tensor]:
        """The BatchNorm statistics of exports, the mean over the ranks, in copies; a collective."""
        own = None if self._average is None else self._average.statistics
        return averaged_statistics(self._model, self._accelerator, own)

    def write_best(self, calibration: Callable[[], Calibration]) -> None:
        """Export the model as the best so far; `calibration` is asked on the main rank."""
        statistics = self.exported_statistics()
        try:
            with self.exported_weights():
                weights = gather_weights(self._model, self._optimizer, self._accelerator)
                write = partial(self._write_best_export, weights, statistics, calibration)
                together(self._accelerator, write)
        except WriteError as error:
            what = f"the export of step {self._state.step}"
            raise AgreedError(not_written(what, self._run_dir, error)) from None

    def _write_best_export(
        self,
        weights: Mapping[str, Tensor] | None,
        statistics: Mapping[str, Tensor],
        calibration: Callable[[], Calibration],
    ) -> None:
        """On the rank that has the weights."""
        if weights is None:
            return
        best_export.write_best(
            self._run_dir,
            self._state.step,
            lambda directory: self._write_export(directory, weights, statistics, calibration()),
        )

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, and remove those beyond the newest k.

        In the background it is only begun: `finish_save` waits for it, or the next one does.
        """
        self.finish_save()
        statistics = self.exported_statistics()
        if self._saves is not None:
            self._saves.begin(
                self._state.step,
                describe_export=lambda directory: self._write_export(directory, None, statistics),
                statistics=statistics,
                state=self._saved_state(),
                run_config=self._run_config,
            )
            return
        checkpoints.save_checkpoint(
            self._run_dir,
            self._state.step,
            accelerator=self._accelerator,
            model=self._model,
            optimizer=self._optimizer,
            average=self._average,
            write_export=lambda directory, weights: self._write_export(
                directory, weights, statistics
            ),
            state=self._saved_state(),
            run_config=self._run_config,
        )
        self._remove_old()

    def finish_save(self) -> None:
        """Wait for the checkpoint that is written in the background, if there is one."""
        if self._saves is not None and self._saves.finish():
            self._remove_old()

    def close(self) -> None:
        """Let a checkpoint be completed that is being written, however the run ends. Not a
        collective."""
        if self._saves is not None:
            self._saves.wait()

    @property
    def in_background(self) -> bool:
        """Whether a thread writes the checkpoints."""
        return self._saves is not None

    def stop_takes_s(self) -> float | None:
        """Seconds that a stop takes to save, by the last save of this run; None: not known.

        In the background it may have to wait for the save before its own.
        """
        last = checkpoints.last_save_s(self._run_dir)
        return last if last is None or self._saves is None else 2 * last

    def _saved_state(self) -> dict[str, Any]:
        return {
            **vars(self._state),
            "epoch": self._state.step // self._data.plan.steps_per_epoch,
            "engine": engine.engine_name(self._accelerator),
            "world_size": self._accelerator.num_processes,
            "mixed_precision": engine.precision(self._accelerator),
            "shards_digest": self._data.manifest.digest,
            "config_sha256": config_sha256(self._config),
            "code_version": code_version(),
        }

    def _remove_old(self) -> None:
        """Remove the checkpoints beyond the newest k, and exports that none refers to."""
        if self._accelerator.is_main_process:
            checkpoints.keep_newest(self._run_dir, self._config.train.keep_checkpoints)
            best_export.keep_exports(self._run_dir, self._best_steps())

    def _best_steps(self) -> set[int]:
        """The best steps that this run or one of its checkpoints refers to."""
        known = map(checkpoints.best_step_of, whole_checkpoints(self._run_dir))
        steps = {self._state.best_step, *known}
        return {step for step in steps if step is not None}

    def _write_export(
        self,
        directory: Path,
        weights: Mapping[str, Tensor] | None,
        statistics: Mapping[str, Tensor],
        calibration: Calibration | None = None,
    ) -> None:
        manifest, history = self._data.manifest, list(self._parts.history)
        write_export(
            directory,
            self._model,
            weights,
            statistics=statistics,
            config=self._config,
            label_names=self._data.label_names,
            preprocessing=self._parts.preprocessing,
            tokenizer=self._parts.tokenizer,
            facts={
                "step": self._state.step,
                "dataset": manifest.dataset,
                "shards_digest": manifest.digest,
                "protocol": manifest.protocol.model_dump(mode="json"),
                "mixed_precision": engine.precision(self._accelerator),
                **({HISTORY_KEY: history} if history else {}),
            },
            calibration=calibration,
            sealed=False,  # by those who flush it
        )
