"""Trackers: services that show a run's measures while it trains (`run.trackers`).

TensorBoard, Weights & Biases and MLflow through Accelerate's trackers. `metrics.jsonl` is written
in any case and is the record that is read again (mmsa/training/tracking.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mmsa.config import Config, RunConfig
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.registry import Registry, nearest, section_of
from mmsa.foundation.settings_yaml import flat_keys

IDS_NAME = "trackers.json"  # in the run directory: the identifiers of this run at services


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run. `start_step` is 0, or the checkpoint's step."""

    directory: Path
    start_step: int
    config: Config


class RunTracker:
    """Shows the measures of a run; exists on the main rank only.

    A resumed launch makes a new one with a later `start_step`, and repeats steps that an
    interrupted launch had already logged. An `OSError` of the system (a full disk) ends the run;
    any other exception only ends the tracker, with a warning.
    """

    package: ClassVar[str | None] = None  # the module it needs, if that is not always installed

    def __init__(self, run: TrackedRun) -> None:
        """Start. Any exception becomes a `UserError`: a run does not begin without its trackers."""

    def log(self, measures: Mapping[str, float], step: int) -> None:
        """Show `measures`, such as `train/loss`, of optimizer step `step`."""
        raise NotImplementedError

    def close(self) -> None:
        """The run ends."""


TRACKERS: Registry[type[RunTracker]] = Registry("tracker")
AnyTracker = TypeVar("AnyTracker", bound=RunTracker)


def register_tracker(name: str) -> Callable[[type[AnyTracker]], type[AnyTracker]]:
    """Class decorator: the tracker becomes an item of `run.trackers`; `UserError` if taken."""

    def register(tracker: type[AnyTracker]) -> type[AnyTracker]:
        TRACKERS.add(name, tracker)
        return tracker

    return register


class AccelerateTracker(RunTracker):
    """One of Accelerate's trackers, made by `open`."""

    def __init__(self, run: TrackedRun) -> None:
        from accelerate import PartialState

        PartialState()  # Accelerate's trackers log through it; in training it exists
        self.tracker = self.open(run)

    def open(self, run: TrackedRun) -> Any:
        """The started tracker."""
        raise NotImplementedError

    def log(self, measures: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(measures), step=step)

    def close(self) -> None:
        self.tracker.finish()


@register_tracker("tensorboard")
class TensorBoard(AccelerateTracker):
    """Event files in `RUN/tensorboard`; what is past the checkpoint is purged on resume."""

    def open(self, run: TrackedRun) -> Any:
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker("tensorboard", run.directory, purge_step=run.start_step + 1)
        tracker.start()
        return tracker


@register_tracker("wandb")
class WandB(AccelerateTracker):
    """A run named after the run directory, in the project `mmsa` or `WANDB_PROJECT`.

    A resumed launch continues it. Of a step that is repeated wandb keeps the first value.
    """

    package = "wandb"

    def open(self, run: TrackedRun) -> Any:
        from accelerate.tracking import WandBTracker

        run_id = known_id(run.directory, "wandb") or uuid.uuid4().hex[:8]
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", "mmsa"),
            name=run.directory.name,
            dir=str(run.directory),
            id=run_id,
            resume="allow",
            config=run.config.model_dump(mode="json"),
        )
        tracker.start()
        note_id(run.directory, "wandb", run_id)
        return tracker


@register_tracker("mlflow")
class MLflow(AccelerateTracker):
    """A run in the experiment `mmsa` or `MLFLOW_EXPERIMENT_NAME`; a resumed launch continues it.

    `MLFLOW_TRACKING_URI` says where: a server, a database, or a directory (`file:PATH`; current
    versions want MLFLOW_ALLOW_FILE_STORE=true for it).
    """

    package = "mlflow"

    def open(self, run: TrackedRun) -> Any:
        from accelerate.tracking import MLflowTracker

        run_id = known_id(run.directory, "mlflow")
        tracker = MLflowTracker("mmsa", run_id=run_id, run_name=run.directory.name)
        tracker.start()
        note_id(run.directory, "mlflow", tracker.tracker.info.run_id)
        if run_id is None:  # parameters of a run are written once
            tracker.store_init_configuration(flat_keys(run.config.model_dump(mode="json")))
        return tracker


def tracker_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: the trackers' names and their packages."""
    chosen = section_of(raw, "run").get("trackers", RunConfig().trackers)
    if not isinstance(chosen, list | tuple):
        return []  # the configuration's own check reports it
    return [problem for name in chosen for problem in _problems(str(name))]


def _problems(name: str) -> list[str]:
    if name not in TRACKERS:
        return [f"run.trackers: '{name}' is not a tracker; {nearest(name, TRACKERS)}"]
    package = TRACKERS[name].package
    if package is None or importlib.util.find_spec(package) is not None:
        return []
    install = (
        f"pip install 'mmsa[{name}]'" if name in ("wandb", "mlflow") else f"pip install {package}"
    )
    return [
        f"run.trackers: {name} needs the package {package}, which is not installed; {install}, or "
        f"take {name} out of run.trackers"
    ]


def known_id(run_dir: Path, service: str) -> str | None:
    """The identifier that an earlier launch of this run had at `service`; None for the first."""
    try:
        found = parse_json((run_dir / IDS_NAME).read_text(encoding="utf-8")).get(service)
    except (OSError, ValueError, AttributeError):
        return None
    return str(found) if found else None


def note_id(run_dir: Path, service: str, identifier: str) -> None:
    """Keep the run's identifier at `service` for a resumed launch."""
    if known_id(run_dir, service) == identifier:
        return
    path = run_dir / IDS_NAME
    try:
        ids = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        ids = {}
    ids = ids if isinstance(ids, dict) else {}
    write_file(path, json.dumps({**ids, service: identifier}, indent=1) + "\n", durable=False)
