"""What `evaluate.py` says of several targets together: a comparison, or the folds as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmsa.evaluation.compare.comparable import check_comparable
from mmsa.evaluation.compare.comparison import check_metric, compare
from mmsa.evaluation.compare.comparison_text import comparison_text
from mmsa.evaluation.compare.folds import check_folds, fold_findings, folds_text, pooled
from mmsa.evaluation.report import files
from mmsa.evaluation.report.read_report import read_report
from mmsa.evaluation.requested_targets import RequestedTarget
from mmsa.evaluation.scores.score_names import classification_report_text

COMPARISON_NAME = "comparison"
FOLDS_NAME = "folds"


def check(asked: Sequence[RequestedTarget], metric: str, *, folds: bool) -> None:
    """Raise `UserError` where the targets do not belong together, before any is evaluated."""
    identities = [(one.name, one.identity) for one in asked]
    if folds:
        check_folds(identities)
    else:
        check_comparable(identities)
        check_metric(metric, asked[0].identity["label_names"])


def write(asked: Sequence[RequestedTarget], metric: str, *, folds: bool, out: Path | None) -> None:
    """Main rank: read all reports, print what they say together, and write it.

    Raises `UserError` where the reports do not belong together.
    """
    reports = [read_report(one.report, one.name) for one in asked]
    identities = [(one.name, one.identity) for one in reports]
    split = reports[0].identity["split"]
    if folds:
        numbers = check_folds(identities)
        predictions, groups = pooled(reports)
        found = fold_findings(reports, numbers, predictions, groups)
        text = classification_report_text(predictions) + "\n" + folds_text(found)
        name = FOLDS_NAME
    else:
        check_comparable(identities)
        found = compare(reports, metric)
        text, name = comparison_text(found), COMPARISON_NAME
    common = os.path.commonpath([one.beside.resolve() for one in asked])
    place = out or Path(common) / f"{name}-{split}"
    files.write_files(place, {f"{name}.txt": text.encode("utf-8"), f"{name}.json": found})
    print(f"\n{text}\n{name} in {place}")
