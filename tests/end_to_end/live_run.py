"""A run that is still training, as far as its readers can tell: new exports and checkpoints appear
and old ones are removed at chosen moments, by the functions of training itself."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmsa.export import load_model, load_tokenizer_of, read_export, write_export
from mmsa.models.model import SentimentModel
from mmsa.training.checkpoints.best_export import keep_exports, write_best
from mmsa.training.checkpoints.checkpoint import keep_newest, save_checkpoint
from mmsa.training.checkpoints.collective_write import REMOVAL_THREAD

_BIAS = "fusion.classifier.3.bias"
_WEIGHT = "fusion.classifier.3.weight"


class LiveRun:
    """Exports whose logits are (step, 0, 0) for each sample, so that predictions tell the step."""

    def __init__(self, directory: Path, trained: Path) -> None:
        """`trained` is a run with a best export, which gives model, tokenizer and settings."""
        self.directory, self.step = directory, 0
        self.weights_sha256: dict[int, str] = {}  # by step
        directory.mkdir()
        (directory / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
        self._export = read_export(trained / "best")
        self._model = load_model(self._export)
        self._tokenizer = load_tokenizer_of(self._export)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.1)
        self._busy = False  # it opens files itself
        self._guard = threading.Lock()
        self._accelerator = Accelerator(cpu=True, mixed_precision="no")

    def advance(self) -> None:
        """A step further: a new best export and a checkpoint; all older ones are removed."""
        self.step += 1
        with torch.no_grad():
            state = self._model.state_dict()
            state[_WEIGHT].zero_()
            state[_BIAS].zero_()[0] = self.step
        self._busy = True
        try:
            with _without_flushing():
                final = write_best(self.directory, self.step, lambda path: self._write(path, state))
                self.weights_sha256[self.step] = read_export(final).weights_sha256
                self._save_checkpoint()
                keep_newest(self.directory, 1)
                keep_exports(self.directory, {self.step})
            for thread in threading.enumerate():
                if thread.name == REMOVAL_THREAD:
                    thread.join()
        finally:
            self._busy = False

    def _save_checkpoint(self) -> None:
        save_checkpoint(
            self.directory,
            self.step,
            accelerator=self._accelerator,
            model=self._model,
            optimizer=self._optimizer,
            write_export=self._write,
            state={"step": self.step, "best_step": self.step, "world_size": 1},
            run_config=self._export.config.to_yaml(),
        )

    def _write(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        old = self._export
        write_export(
            directory,
            self._model,
            weights,
            statistics={},
            config=old.config,
            label_names=old.label_names,
            preprocessing=old.preprocessing,
            tokenizer=self._tokenizer,
            facts={**old.facts, "step": self.step},
            calibration=replace(old.calibration, temperature=1.0 + self.step / 1000)
            if old.calibration
            else None,
        )

    @contextmanager
    def advancing_at(self, moments: set[int]) -> Iterator[list[int]]:
        """Advance just before the n-th opening of a file of the run, for each n in `moments`.

        Yields a list that holds the number of openings so far.
        """
        count = [0]

        def before_opening(path: Any) -> None:
            if not str(path).startswith(str(self.directory)):
                return
            with self._guard:  # files are hashed by several threads
                if self._busy:
                    return
                count[0] += 1
                self._busy = count[0] in moments
                if not self._busy:
                    return
            self.advance()

        with _heard(before_opening):
            yield count


@contextmanager
def _without_flushing() -> Iterator[None]:
    """No power fails in a test, and a flush takes tenths of a second on a busy disk."""
    flush = os.fsync
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = flush


_listeners: list[Any] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _listeners:
        for listener in list(_listeners):
            listener(arguments[0])


@contextmanager
def _heard(listener: Any) -> Iterator[None]:
    """Call `listener` with the path of each file that Python code is about to open."""
    if not getattr(sys, "_mmsa_hears_openings", False):
        sys.addaudithook(_hook)  # cannot be removed
        sys._mmsa_hears_openings = True  # type: ignore[attr-defined]
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def step_of(model: SentimentModel) -> int:
    """The step that the weights of an export of `LiveRun` tell."""
    return int(model.state_dict()[_BIAS][0])


def last_report(run_dir: Path) -> Path:
    """The newest report of a run."""
    return max((run_dir / "reports").iterdir(), key=lambda path: path.stat().st_mtime)


def check_report(report: Path, run_dir: Path) -> int:
    """Assert that everything in a report is of one export; returns its step."""
    metrics = json.loads((report / "metrics.json").read_text())
    step: int = metrics["identity"]["step"]
    rows = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
    assert {row["logits"][0] for row in rows} == {float(step)}
    assert metrics["calibration"]["temperature"] == 1.0 + step / 1000
    weights = metrics["identity"]["weights_sha256"]
    ledger = (run_dir / "test_ledger.jsonl").read_text().splitlines()
    assert json.loads(ledger[-1])["weights_sha256"] == weights
    return step
