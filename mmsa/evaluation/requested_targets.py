"""The targets named on the command line: runs and exports to evaluate, or existing reports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget, Request, data_suffix, open_target
from mmsa.evaluation.report.files import read_metrics
from mmsa.evaluation.report.read_report import is_report, report_matches


@dataclass(frozen=True)
class RequestedTarget:
    """One target of the command line and the directory of its report."""

    name: str
    report: Path
    identity: Mapping[str, Any]
    to_evaluate: EvalTarget | None  # None: the report already exists and is reused
    parent: Path  # the directory that contains the run, the export or the report
    data_suffix: str  # of the report's directory; empty on the data that the model was trained on
    opened: EvalTarget | None = None  # None for a path that is a report

    def written_to(self, report: Path) -> RequestedTarget:
        """This target, its report now being in the directory `report`."""
        return replace(self, report=report, identity=read_metrics(report)["identity"])


def requested_targets(
    paths: Sequence[Path],
    *,
    precision: str,
    device_type: str,
    reuse_reports: bool,
    checkpoint: str,
    shards: str | None,
    split: str,
    batch_size: int | None,
) -> list[RequestedTarget]:
    """Find every target; the last four arguments are those of `Request`.

    A path may be a report itself. With `reuse_reports`, a run whose report was made from the same
    weights, data, settings and code is not evaluated again: the test split is opened no more often
    than necessary. Every rank finds the same.
    """
    targets = []
    for name, path in zip(short_names(paths), paths, strict=True):
        if is_report(path):
            identity = read_metrics(path)["identity"]
            suffix = data_suffix(str(identity.get("dataset")), str(identity.get("shards_digest")))
            suffix = suffix if path.resolve().name.endswith(suffix) else ""
            targets.append(RequestedTarget(name, path, identity, None, path.parent, suffix))
            continue
        target = open_target(Request(path, checkpoint, shards, split, batch_size))
        identity = target.identity(precision=precision, device_type=device_type)
        report = target.report_directory()
        reused = reuse_reports and report_matches(report, identity)
        parent = target.source.home.parent
        to_evaluate = None if reused else target
        suffix = target.data_suffix
        targets.append(RequestedTarget(name, report, identity, to_evaluate, parent, suffix, target))
    return targets


def refuse_to_calibrate_the_hub(targets: Sequence[RequestedTarget]) -> None:
    """Raise `UserError` for an export of the hub: a temperature is stored in the export."""
    for target in targets:
        if target.opened is not None and target.opened.source.from_hub:
            raise UserError(
                f"--calibrate stores the temperature in the export, and {target.name} is on the "
                "hub; calibrate a directory (hf download ORG/NAME --local-dir DIR), and push it"
            )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The paths as given, without the directories that they have in common."""
    texts = [str(path) for path in paths]
    if len(set(texts)) < 2:
        return texts
    common = os.path.commonpath([os.path.abspath(text) for text in texts])
    short = [os.path.relpath(os.path.abspath(text), common) for text in texts]
    return texts if "." in short else short
