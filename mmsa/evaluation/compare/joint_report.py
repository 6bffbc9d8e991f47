"""The result of several targets together: a comparison, or the folds as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmsa.evaluation.compare.comparison import check_comparable, check_metric, compare
from mmsa.evaluation.compare.comparison_text import comparison_text
from mmsa.evaluation.compare.folds import check_folds, fold_findings, folds_text, pooled
from mmsa.evaluation.report import files
from mmsa.evaluation.report.read_report import read_report
from mmsa.evaluation.requested_targets import RequestedTarget
from mmsa.evaluation.scores.score_names import classification_report_text

COMPARISON_NAME = "comparison"
FOLDS_NAME = "folds"


def check(targets: Sequence[RequestedTarget], metric: str, *, folds: bool) -> None:
    """Raise `UserError` if the targets do not belong together, before any is evaluated."""
    identities = [(target.name, target.identity) for target in targets]
    if folds:
        check_folds(identities)
    else:
        check_comparable(identities)
        check_metric(metric, targets[0].identity["label_names"])


def write(
    targets: Sequence[RequestedTarget], metric: str, *, folds: bool, out: Path | None
) -> None:
    """Main rank: read all reports, print their joint result and write it.

    Raises `UserError` if the reports do not belong together.
    """
    reports = [read_report(target.report, target.name) for target in targets]
    identities = [(report.name, report.identity) for report in reports]
    split = reports[0].identity["split"]
    if folds:
        fold_numbers = check_folds(identities)
        predictions, groups = pooled(reports)
        content = fold_findings(reports, fold_numbers, predictions, groups)
        text = classification_report_text(predictions) + "\n" + folds_text(content)
        name = FOLDS_NAME
    else:
        check_comparable(identities)
        content = compare(reports, metric)
        text, name = comparison_text(content), COMPARISON_NAME
    common = os.path.commonpath([target.parent.resolve() for target in targets])
    directory = out or Path(common) / f"{name}-{split}{targets[0].data_suffix}"
    files.write_files(directory, {f"{name}.txt": text.encode("utf-8"), f"{name}.json": content})
    print(f"\n{text}\n{name} in {directory}")
