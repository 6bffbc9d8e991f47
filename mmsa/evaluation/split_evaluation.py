"""One evaluation: all ranks predict a target's split, then the main rank writes the report."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmsa.calibration import (
    CALIBRATION_NAME,
    FITTED_ON,
    Calibration,
    described,
    store_calibration,
    temperature_of,
)
from mmsa.data.batch_requests import EvaluationRequests
from mmsa.data.loading.workers import start_forkserver
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Batch, Loader
from mmsa.engines import engine
from mmsa.engines.cpu_lanes import fix_threads
from mmsa.engines.gpu_supply import loader_workers
from mmsa.engines.gpu_texts import text_layout
from mmsa.errors import UserError
from mmsa.evaluation.arguments import Options
from mmsa.evaluation.floors.fitting import Floors, floors_of
from mmsa.evaluation.inputs import ledger
from mmsa.evaluation.inputs.eval_target import EvalTarget, samples_hash
from mmsa.evaluation.inputs.sample_facts import SampleFacts, check_keys, read_facts
from mmsa.evaluation.inputs.seen_before import seen_by
from mmsa.evaluation.modality_audit.audit import AUDIT_NAME, audit, audit_text
from mmsa.evaluation.modality_audit.changed_inputs import Change, ChangedReader
from mmsa.evaluation.one_model import agree_on_model, main_rank_does, open_model
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.report import files
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.page.gallery import cards
from mmsa.evaluation.report.page.render import PAGE_NAME, read_training, render
from mmsa.evaluation.report.predictions_file import rows_of
from mmsa.evaluation.report.summary import chosen_here_text, summary_text
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import classification_report_text
from mmsa.lineage import earlier_openings, soup_of
from mmsa.process import runtime


class SplitEvaluation:
    """The evaluation of one target on this rank: create it, `begin`, `predict`, `write_report`.

    Create it before the device is touched, because the process that forks loader workers starts
    here.
    """

    def __init__(self, target: EvalTarget, world: runtime.World, options: Options) -> None:
        self.options, self._world = options, world
        self.started, self._begin = datetime.now(UTC), time.perf_counter()
        self.openings = 0
        # Sums depend on the number of threads: fixed, so that results do not depend on the launch.
        self._lanes = fix_threads(target.export.config.eval.cpu_threads)
        if self._workers_of(target):
            start_forkserver()
        self._opened = open_model(target)

    @property
    def target(self) -> EvalTarget:
        """What is evaluated; after `begin` the same on all ranks."""
        return self._opened.target

    def begin(self, accelerator: Accelerator) -> None:
        """Agree on the model, record the opening of the test split, start to read; collective.

        Raises `AgreedError` if the ranks cannot load the same model, or if the opening cannot be
        recorded: then no sample has been read.
        """
        found = self.target
        self._opened = agree_on_model(self._opened, accelerator)
        step = self.target.export.facts.get("step")
        if step != found.export.facts.get("step"):
            runtime.logger.info("the run has a newer export by now, that of step %s", step)
        self.openings = main_rank_does(accelerator, self._record_opening)
        self._requests, self.batches = self._loader(self.target.reader)

    def _record_opening(self) -> int:
        return ledger.record_opening(
            self.target.source.make_home(),
            split=self.target.split,
            weights_sha256=self.target.export.weights_sha256,
            shards_digest=self.target.manifest.digest,
        )

    def _workers_of(self, target: EvalTarget) -> int:
        """Loader processes of each rank."""
        asked = self.options.num_workers
        if asked is not None:
            return asked
        return loader_workers(target.export.config.data.num_workers, self._world)

    def _loader(self, reader: SplitReader) -> tuple[EvaluationRequests, Iterator[Batch]]:
        world, config = self._world, self.target.export.config
        requests = EvaluationRequests(reader, self.target.batch_size, world.world_size, world.rank)
        layout = text_layout(self._opened.model, config.gpu)
        loader = Loader(
            requests,
            self.target.export.preprocessing,
            self._opened.tokenizer,
            self._workers_of(self.target),
            pin_memory=torch.cuda.is_available(),
            timeout_s=config.data.timeout_s,
            layout=layout,
        )
        return requests, loader

    def predict(
        self,
        accelerator: Accelerator,
        reader: SplitReader | None = None,
        progress: str = "evaluating",
    ) -> tuple[Predictions, list[int]]:
        """(predictions of the split, number of samples that each rank computed); collective.

        `reader` may return the same samples with changed contents.
        """
        requests, batches = self._requests, self.batches
        if reader is not None:
            requests, batches = self._loader(reader)
        return predict_split(
            self._opened.model.to(accelerator.device),
            batches,
            len(requests),
            accelerator=accelerator,
            label_names=self.target.export.label_names,
            num_samples=len(self.target.reader),
            progress=progress,
            lanes=self._lanes,
        )

    def predict_changed(self, accelerator: Accelerator) -> dict[Change, Predictions]:
        """Predictions of the same samples with each change of the modality audit; collective."""
        target = self.target
        image = target.export.preprocessing.image
        assert image is not None, "call check_modalities first"
        changed = {}
        for change in Change:
            reader = ChangedReader(
                target.shards,
                target.manifest,
                target.split,
                target.export.class_map(target.manifest.classes),
                change=change,
                mean=image.mean,
                may_lack=target.export.may_lack,
            )
            changed[change], _ = self.predict(accelerator, reader, str(change))
        return changed

    def facts(self, predictions: Predictions) -> list[SampleFacts]:
        """Facts of the evaluated samples, in the order of the predictions."""
        facts = read_facts(self.target.reader)
        check_keys(facts, predictions.keys)
        return facts

    def calibration(self, predictions: Predictions) -> Calibration | None:
        """The export's; with --calibrate fitted on these predictions and stored in the export."""
        if not self.options.calibrate:
            return self.target.export.calibration
        fitted = fit(
            predictions, split=self.target.split, shards_digest=self.target.manifest.digest
        )
        store_calibration(self.target.source.directory, fitted)
        print(f"{described(fitted)}, stored in {self.target.source.directory / CALIBRATION_NAME}")
        return fitted

    def floors(self, facts: list[SampleFacts], predictions: Predictions) -> Floors | None:
        """Majority class and TF-IDF on these samples; None if they cannot be fitted (printed)."""
        if not self.options.floors or self.target.split == "train":
            return None
        try:
            return floors_of(self.target, facts, predictions)
        except UserError as error:
            print(f"no floors: {error}")
            return None

    def identity(self, accelerator: Accelerator, predictions: Predictions) -> dict[str, Any]:
        """Identifies data, weights, settings, code and the sample set."""
        names = predictions.label_names
        truth = [names[label] for label in predictions.labels]
        return {
            **self.target.identity(
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
        """Main rank: print the report and write its files to `out`; returns `metrics.json`.

        With `changed`, the result of `predict_changed`, the report has a modality audit.
        """
        facts = self.facts(predictions)
        print(classification_report_text(predictions))
        sys.stdout.flush()  # to be read while the intervals are computed
        calibration = self.calibration(predictions)
        findings = compute_findings(
            predictions,
            facts,
            seen=seen_by(self.target, facts),
            calibration=calibration,
            floors=self.floors(facts, predictions),
        )
        soup = soup_of(self.target.export.facts)
        if soup is not None:
            findings["soup"] = soup
        print(summary_text(findings))
        if self.target.split == FITTED_ON:
            print(chosen_here_text(findings))
        identity = self.identity(accelerator, predictions)
        extra_files: dict[str, Any] = {}
        if changed is not None:
            extra_files[AUDIT_NAME] = audit(predictions, changed, facts) | {"identity": identity}
            print(audit_text(extra_files[AUDIT_NAME]))
        temperature = temperature_of(calibration)
        if self.options.page:
            extra_files[PAGE_NAME] = self._page(
                predictions, facts, findings, identity, temperature, extra_files.get(AUDIT_NAME)
            )
        files.write_report(
            out,
            predictions,
            findings,
            identity,
            rows_of(predictions, facts, temperature),
            file_format=self.options.file_format,
            extra_files=extra_files,
        )
        self._write_run_facts(out, accelerator, samples_per_rank)
        home = self.target.source.home
        if self.target.split == ledger.TEST_SPLIT:
            others = ledger.read_ledger(home).num_openings - self.openings
            of_others = f", and {others} time(s) that of other data" if others > 0 else ""
            print(f"the test split has been opened {self.openings} time(s) by {home}{of_others}")
            facts_of_export, digest = self.target.export.facts, self.target.manifest.digest
            if earlier := earlier_openings(facts_of_export, digest):
                print(f"the runs that it began from had opened it {earlier} time(s) before that")
        print(f"report in {out}")
        return dict(rounded({**findings, "identity": identity}))

    def _page(
        self,
        predictions: Predictions,
        facts: list[SampleFacts],
        findings: dict[str, Any],
        identity: dict[str, Any],
        temperature: float,
        audited: dict[str, Any] | None,
    ) -> bytes:
        private, home = self.options.private, self.target.source.home
        of_data = f" of {self.target.manifest.dataset}" if self.target.on_other_data else ""
        reader = self.target.reader
        return render(
            predictions,
            findings,
            identity,
            cards=cards(predictions, facts, reader, temperature=temperature, private=private),
            training=read_training(home),
            audit=audited,
            openings=self.openings,
            title=f"{self.target.name}: {self.target.split} split{of_data}",
            private=private,
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
