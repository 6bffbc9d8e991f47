"""One evaluation: predictions of a subject by all ranks, then its report by the main rank."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mmsa.calibration import CALIBRATION_NAME, FITTED_ON, Calibration, to_json
from mmsa.data.batch_requests import EvaluationRequests
from mmsa.data.loading.workers import start_forkserver
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Batch, Loader
from mmsa.engines import engine
from mmsa.errors import UserError
from mmsa.evaluation.floors.fitting import Floors, floors_of, read_texts
from mmsa.evaluation.inputs import ledger
from mmsa.evaluation.inputs.eval_target import EvalTarget, samples_hash
from mmsa.evaluation.inputs.sample_facts import SampleFacts, check_keys, groups_of, read_facts
from mmsa.evaluation.inputs.seen_before import SeenBefore, seen_before
from mmsa.evaluation.modality_audit.audit import AUDIT_NAME, audit, audit_text
from mmsa.evaluation.modality_audit.changed_inputs import Change, ChangedReader
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.report import files
from mmsa.evaluation.report.findings import findings
from mmsa.evaluation.report.page.gallery import cards
from mmsa.evaluation.report.page.render import PAGE_NAME, read_training, render
from mmsa.evaluation.report.predictions_file import rows_of
from mmsa.evaluation.report.summary import summary_text
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import classification_report_text
from mmsa.export import load_model, load_tokenizer_of
from mmsa.models.model import SentimentModel
from mmsa.process import runtime


@dataclass(frozen=True)
class Options:
    """How to evaluate: what the command line said, for all subjects alike."""

    precision: str = "no"
    num_workers: int | None = None  # None: as the run's data.num_workers
    file_format: str = "jsonl"
    floors: bool = True
    calibrate: bool = False
    page: bool = True
    private: bool = False


class SplitEvaluation:
    """A subject on this rank: model, loader, and where its time goes.

    Made before the device is touched, because loader workers start here. `open_test` is called by
    the main rank before the first sample is read.
    """

    def __init__(self, subject: EvalTarget, world: runtime.World, options: Options) -> None:
        self.subject, self.options, self._world = subject, options, world
        self.started, self._begin = datetime.now(UTC), time.perf_counter()
        self.openings = 0
        if world.is_main_process:  # before the loader, which reads ahead
            self.openings = ledger.record_opening(
                subject.target.home,
                split=subject.split,
                weights_sha256=subject.export.weights_sha256,
                shards_digest=subject.manifest.digest,
            )
        # Sums depend on the number of threads; with a fixed one results do not depend on the world.
        torch.set_num_threads(subject.export.config.eval.cpu_threads)
        if self._num_workers:
            start_forkserver()
        self._tokenizer = load_tokenizer_of(subject.export)
        self._model: SentimentModel = load_model(subject.export)
        self._requests, self.batches = self._loader(subject.reader)

    @property
    def _num_workers(self) -> int:
        asked = self.options.num_workers
        return self.subject.export.config.data.num_workers if asked is None else asked

    def _loader(self, reader: SplitReader) -> tuple[EvaluationRequests, Iterator[Batch]]:
        world, config = self._world, self.subject.export.config
        requests = EvaluationRequests(reader, self.subject.batch_size, world.world_size, world.rank)
        loader = Loader(
            requests,
            self.subject.export.preprocessing,
            self._tokenizer,
            self._num_workers,
            pin_memory=torch.cuda.is_available(),
            timeout_s=config.data.timeout_s,
        )
        return requests, loader

    def predict(
        self,
        accelerator: Accelerator,
        reader: SplitReader | None = None,
        progress: str = "evaluating",
    ) -> tuple[Predictions, list[int]]:
        """Predictions of the split, or of the same samples as another `reader` gives them;
        collective. Also how many samples each rank computed."""
        requests, batches = self._requests, self.batches
        if reader is not None:
            requests, batches = self._loader(reader)
        return predict_split(
            self._model.to(accelerator.device),
            batches,
            len(requests),
            accelerator=accelerator,
            label_names=self.subject.export.label_names,
            num_samples=len(self.subject.reader),
            progress=progress,
        )

    def predict_changed(self, accelerator: Accelerator) -> dict[Change, Predictions]:
        """Predictions of the same samples under every change of the modality audit; collective."""
        subject = self.subject
        image = subject.export.preprocessing.image
        assert image is not None, "check_modalities comes first"
        found = {}
        for change in Change:
            reader = ChangedReader(
                subject.shards,
                subject.manifest,
                subject.split,
                subject.export.class_map(subject.manifest.classes),
                change=change,
                mean=image.mean,
            )
            found[change], _ = self.predict(accelerator, reader, str(change))
        return found

    def facts(self, predictions: Predictions) -> list[SampleFacts]:
        """The facts of the evaluated samples, in the order of the predictions."""
        facts = read_facts(self.subject.reader)
        check_keys(facts, predictions.keys)
        return facts

    def calibration(self, predictions: Predictions) -> Calibration | None:
        """The export's; under --calibrate fitted on these predictions and written to the export."""
        if not self.options.calibrate:
            return self.subject.export.calibration
        found = fit(
            predictions, split=self.subject.split, shards_digest=self.subject.manifest.digest
        )
        content = to_json(found).encode("utf-8")
        files.write_files(self.subject.target.directory, {CALIBRATION_NAME: content})
        print(
            f"temperature {found.temperature:.4g}, fitted on {found.num_samples} validation "
            f"samples (log loss {found.loss_before:.4f} -> {found.loss_after:.4f}), stored in "
            f"{self.subject.target.directory / CALIBRATION_NAME}"
        )
        return found

    def floors(self, facts: list[SampleFacts], predictions: Predictions) -> Floors | None:
        """Majority class and TF-IDF on the same split; None, and why on the screen, without."""
        subject = self.subject
        if not self.options.floors or subject.split == "train":
            return None
        classes = subject.export.class_map(subject.manifest.classes)
        try:
            train, val = (
                read_texts(SplitReader(subject.shards, subject.manifest, name, classes))
                for name in ("train", "val")
            )
            return floors_of(train, val, facts, predictions)
        except UserError as error:
            print(f"no floors: {error}")
            return None

    def identity(self, accelerator: Accelerator, predictions: Predictions) -> dict[str, Any]:
        """Names of data, weights and code, and of the sample set."""
        names = predictions.label_names
        truth = [names[label] for label in predictions.labels]
        return {
            **self.subject.identity(
                precision=self.options.precision, device_type=accelerator.device.type
            ),
            "samples_sha256": samples_hash(predictions.keys, truth),
        }

    def write_report(
        self,
        accelerator: Accelerator,
        predictions: Predictions,
        samples_per_rank: list[int],
        out: Path,
        changed: Mapping[Change, Predictions] | None = None,
    ) -> dict[str, Any]:
        """Main rank: print the report and write its files into `out`; returns `metrics.json`.

        With `changed`, as `predict_changed` gives it, also the modality audit.
        """
        facts = self.facts(predictions)
        print(classification_report_text(predictions))
        sys.stdout.flush()  # the report is there to be read while the intervals are computed
        calibration = self.calibration(predictions)
        found = findings(
            predictions,
            facts,
            seen=self._seen(facts),
            calibration=calibration,
            floor=self.floors(facts, predictions),
        )
        print(summary_text(found))
        if self.subject.split == FITTED_ON:
            print(
                "note: the best export, its temperature and C of TF-IDF were chosen on this split; "
                "its figures are too good\n"
            )
        identity = self.identity(accelerator, predictions)
        further: dict[str, Any] = {}
        if changed is not None:
            further[AUDIT_NAME] = audit(predictions, changed, facts) | {"identity": identity}
            print(audit_text(further[AUDIT_NAME]))
        temperature = 1.0 if calibration is None else calibration.temperature
        if self.options.page:
            further[PAGE_NAME] = self._page(
                predictions, facts, found, identity, temperature, further.get(AUDIT_NAME)
            )
        files.write_report(
            out,
            predictions,
            found,
            identity,
            list(rows_of(predictions, facts, temperature)),
            file_format=self.options.file_format,
            further=further,
        )
        self._write_run_facts(out, accelerator, samples_per_rank)
        home = self.subject.target.home
        if self.subject.split == ledger.TEST_SPLIT:
            print(f"the test split has been opened {self.openings} time(s) by {home}")
        print(f"report in {out}")
        return dict(rounded({**found, "identity": identity}))

    def _page(
        self,
        predictions: Predictions,
        facts: list[SampleFacts],
        found: dict[str, Any],
        identity: dict[str, Any],
        temperature: float,
        audited: dict[str, Any] | None,
    ) -> bytes:
        private, home = self.options.private, self.subject.target.home
        reader = self.subject.reader
        return render(
            predictions,
            found,
            identity,
            cards=cards(predictions, facts, reader, temperature=temperature, private=private),
            training=read_training(home),
            audit=audited,
            openings=self.openings,
            title=f"{self.subject.name}: {self.subject.split} split",
            private=private,
        )

    def _seen(self, facts: list[SampleFacts]) -> SeenBefore:
        subject = self.subject
        return seen_before(
            subject.manifest,
            subject.shards,
            subject.split,
            groups_of(facts),
            np.array([one.key_hash for one in facts], dtype=np.uint64),
            trained_digest=subject.export.facts.get("shards_digest"),
            trained_shards=subject.export.config.data.shards,
        )

    def _write_run_facts(
        self, out: Path, accelerator: Accelerator, samples_per_rank: list[int]
    ) -> None:
        files.write_run_facts(
            out,
            {
                **engine.launch_facts(accelerator),
                "host": socket.gethostname(),
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - self._begin, 3),
                "samples_per_rank": samples_per_rank,
                "test_split_openings": self.openings,
            },
        )
