"""The result of several targets together: a comparison, or the folds as one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.evaluation.arguments import Options
from mmsa.evaluation.compare.comparison import check_comparable, check_metric
from mmsa.evaluation.compare.comparison import compare as comparison_of
from mmsa.evaluation.compare.comparison_text import comparison_text
from mmsa.evaluation.compare.ensemble import check_ensemble, ensemble_identity, write_ensemble
from mmsa.evaluation.compare.experiments import check_experiments, pooled_experiments
from mmsa.evaluation.compare.folds import check_folds, fold_findings, fold_of, folds_text, pooled
from mmsa.evaluation.report import files
from mmsa.evaluation.report.read_report import read_report
from mmsa.evaluation.requested_targets import RequestedTarget
from mmsa.evaluation.scores.score_names import classification_report_text

COMPARISON_NAME = "comparison"
FOLDS_NAME = "folds"


def check(
    targets: Sequence[RequestedTarget],
    metric: str,
    *,
    folds: bool,
    compare: bool = False,
    ensemble: bool = False,
) -> None:
    """Raise `UserError` if the targets do not belong together, before any is evaluated."""
    identities: list[tuple[str, Mapping[str, Any]]] = [
        (target.name, target.identity) for target in targets
    ]
    if ensemble:
        groups = _groups(targets, folds=folds)
        for group in groups:
            check_ensemble(group)
        if folds:
            identities = [
                (group[0].name, ensemble_identity([member.identity for member in group]))
                for group in groups
            ]
    if folds and compare:
        check_experiments(identities)
    elif folds:
        check_folds(identities)
    elif not ensemble:
        check_comparable(identities)
    if compare or not folds:
        check_metric(metric, targets[0].identity["label_names"])
    _check_each_has_its_report(targets)


def _check_each_has_its_report(targets: Sequence[RequestedTarget]) -> None:
    """Raise `UserError` where the report of one target would replace that of another."""
    names: dict[str, str] = {}
    for target in targets:
        place = os.path.realpath(target.report)
        if place in names:
            raise UserError(
                f"{names[place]} and {target.name} are of different weights and have the same "
                f"report, {target.report}; evaluate one of them with --out, and name that report"
            )
        names[place] = target.name


def write_ensembles(
    targets: Sequence[RequestedTarget], options: Options, *, folds: bool, out: Path | None
) -> list[RequestedTarget]:
    """Main rank: the reports of the ensemble of all targets, or of one for each fold.

    `out` is the directory of the report, for one ensemble.
    """
    return [write_ensemble(group, options, out) for group in _groups(targets, folds=folds)]


def _groups(targets: Sequence[RequestedTarget], *, folds: bool) -> list[list[RequestedTarget]]:
    """The members of each ensemble: all targets, or those of each fold."""
    if not folds:
        return [list(targets)]
    groups: dict[int, list[RequestedTarget]] = {}
    for target in targets:
        groups.setdefault(fold_of(target.name, target.identity).number, []).append(target)
    return [groups[number] for number in sorted(groups)]


def write(
    targets: Sequence[RequestedTarget],
    metric: str,
    *,
    folds: bool,
    out: Path | None,
    compare: bool = False,
) -> None:
    """Main rank: read all reports, print their joint result and write it.

    With both `folds` and `compare`, whole experiments are compared.

    Raises `UserError` if the reports do not belong together.
    """
    reports = [read_report(target.report, target.name) for target in targets]
    identities = [(report.name, report.identity) for report in reports]
    split = reports[0].identity["split"]
    if folds and not compare:
        fold_numbers = check_folds(identities)
        predictions, groups = pooled(reports)
        content = fold_findings(reports, fold_numbers, predictions, groups)
        text = classification_report_text(predictions) + "\n" + folds_text(content)
        name = FOLDS_NAME
    else:
        if folds:
            reports = pooled_experiments(reports)
        else:
            check_comparable(identities)
        content = comparison_of(reports, metric)
        text, name = comparison_text(content), COMPARISON_NAME
    common = os.path.commonpath([target.parent.resolve() for target in targets])
    directory = out or Path(common) / f"{name}-{split}{targets[0].data_suffix}"
    files.write_files(directory, {f"{name}.txt": text.encode("utf-8"), f"{name}.json": content})
    print(f"\n{text}\n{name} in {directory}")
