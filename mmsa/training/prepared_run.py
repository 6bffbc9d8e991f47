"""A run before it has a device: what `setup.prepare_run` returns and `Run` is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmsa.config import Config
from mmsa.data.manifest import Manifest
from mmsa.data.plan import BatchPlan
from mmsa.data.storage.downloader import Downloader
from mmsa.data.stream import Batch, Loader
from mmsa.data.text import TextTokenizer
from mmsa.models.model import SentimentModel
from mmsa.preprocessing import Preprocessing
from mmsa.training.checkpoints.disk_space import DiskNeed


@dataclass
class TrainingState:
    """Where a run is, and what of it does not follow from the step; saved in `state.json`."""

    step: int = 0
    best_value: float | None = None  # as `selection_value`: more is better
    best_step: int | None = None
    validations_since_best: int = 0
    validated_step: int = 0
    stopped_early: bool = False


@dataclass(frozen=True)
class RunData:
    """The packed data of a run, and how its training split is cut into batches."""

    manifest: Manifest
    plan: BatchPlan
    label_names: tuple[str, ...]
    class_counts: list[int]  # of the training split, in the order of `label_names`
    num_validation_samples: int


@dataclass
class RunLoaders:
    """Endless iterators over this rank's batches; their worker processes are running."""

    train: Iterator[Batch]
    validation: Iterator[Batch]
    num_validation_batches: int  # of this rank, in one validation
    downloads: Downloader | None = None  # of this node's cache, on one of its ranks

    def send_to(self, device: torch.device) -> None:
        """From now on the batches are on the GPU `device`, copied one ahead; before the first."""
        for loader in (self.train, self.validation):
            if isinstance(loader, Loader):
                loader.send_to(device)


@dataclass(frozen=True)
class ModelParts:
    """The model before an engine wraps it, and what turns a packed sample into its input.

    `history` says where its weights are from, beyond this run (`mmsa/lineage.py`).
    """

    model: SentimentModel
    tokenizer: TextTokenizer | None
    preprocessing: Preprocessing
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class PreparedRun:
    """All parts of a run that need neither a device nor another rank."""

    config: Config
    run_dir: Path
    num_steps: int
    data: RunData
    loaders: RunLoaders
    parts: ModelParts
    state: TrainingState
    resumed_from: Path | None  # a checkpoint
    disk_need: DiskNeed
