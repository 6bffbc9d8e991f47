"""What the command line names: runs and exports to be evaluated, or reports that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.evaluation.inputs.eval_target import EvalTarget, open_subject
from mmsa.evaluation.report.files import read_metrics
from mmsa.evaluation.report.read_report import is_report, serves


@dataclass(frozen=True)
class RequestedTarget:
    """One target. Without `subject` its report is there already, and is not made again."""

    name: str
    report: Path
    identity: Mapping[str, Any]
    subject: EvalTarget | None
    beside: Path  # the directory in which the run, the export or the report lies


def requested_targets(
    paths: Sequence[Path],
    *,
    precision: str,
    device_type: str,
    again: bool,
    **how: Any,
) -> list[RequestedTarget]:
    """Find every target; `how` is passed to `open_subject`.

    A report's own directory stands for itself. A run whose report was made of the same weights,
    data, settings and code is not evaluated again, unless `again`: the test split is opened no more
    often than it must be. Every rank finds the same.
    """
    found = []
    for name, path in zip(short_names(paths), paths, strict=True):
        if is_report(path):
            found.append(
                RequestedTarget(name, path, read_metrics(path)["identity"], None, path.parent)
            )
            continue
        subject = open_subject(path, **how)
        identity = subject.identity(precision=precision, device_type=device_type)
        report = subject.report_directory()
        there = not again and serves(report, identity)
        beside = subject.target.home.parent
        found.append(RequestedTarget(name, report, identity, None if there else subject, beside))
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The paths as given, without what they have in common."""
    texts = [str(path) for path in paths]
    if len(set(texts)) < 2:
        return texts
    common = os.path.commonpath([os.path.abspath(text) for text in texts])
    short = [os.path.relpath(os.path.abspath(text), common) for text in texts]
    return texts if "." in short else short
