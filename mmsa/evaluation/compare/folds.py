"""The runs of a k-fold protocol as one result: each sample is in the test split of one fold.

The interval over folds is Student's, of one score per fold. It is too narrow by an unknown amount,
because the folds' training sets overlap (Bengio and Grandvalet, JMLR 2004). The interval of the
pooled predictions covers the choice of samples, not of another training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsa.errors import UserError
from mmsa.evaluation.report.read_report import Report
from mmsa.evaluation.scores.bootstrap import Bootstrap
from mmsa.evaluation.scores.confusions import class_cautions
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics
from mmsa.evaluation.scores.paired_tests import spread
from mmsa.evaluation.scores.score_names import SCORE_TITLES, columns, with_interval
from mmsa.evaluation.scores.score_table import as_json, bootstrap_facts, score_table

_NAME = re.compile(r"(?P<rule>[\w-]+):(?P<fold>\d+)(?:/(?P<folds>\d+))?")
# Protocols with a fixed number of folds; partial: some ids of the published list are missing.
_PUBLISHED = {"tib10": 10, "tib10-partial": 10}


@dataclass(frozen=True)
class Fold:
    """Fold `number` of `count`, parsed from the protocol's name."""

    rule: str
    number: int
    count: int


def fold_of(name: str, identity: Mapping[str, Any]) -> Fold:
    """The fold of a report or target; `UserError` if its protocol has none."""
    protocol = str(identity["protocol"]["name"])
    parts = _NAME.fullmatch(protocol)
    count = parts and (parts["folds"] or _PUBLISHED.get(parts["rule"]))
    if parts is None or count is None:
        raise UserError(
            f"{name} was trained under the protocol '{protocol}', which has no folds; --folds "
            "takes the runs of kfold:1/N to kfold:N/N, or tib10:1 to tib10:10"
        )
    return Fold(parts["rule"], int(parts["fold"]), int(count))


def check_folds(identities: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Fold]:
    """The fold of each; `UserError` unless they are all folds of one protocol, each once."""
    folds = [fold_of(name, identity) for name, identity in identities]
    (first_name, first), fold = identities[0], folds[0]
    for (name, identity), other in zip(identities[1:], folds[1:], strict=True):
        alike = (other.rule, other.count) == (fold.rule, fold.count)
        for key in ("dataset", "label_names", "split", "configuration"):
            if not alike or identity.get(key) != first.get(key):
                what = key if alike else "protocol"
                raise UserError(
                    f"{first_name} and {name} are not folds of one experiment: their {what} differs"
                )
    numbers = [f.number for f in folds]
    repeated = sorted(number for number in set(numbers) if numbers.count(number) > 1)
    if repeated:
        raise UserError(
            f"--folds takes each fold once; found twice: {', '.join(map(str, repeated))}"
        )
    missing = sorted(set(range(1, fold.count + 1)) - set(numbers))
    if missing:
        raise UserError(
            f"--folds needs all {fold.count} folds of {fold.rule}; missing: "
            f"{', '.join(map(str, missing))}"
        )
    return folds


def pooled(reports: Sequence[Report]) -> tuple[Predictions, np.ndarray[Any, Any]]:
    """All folds' predictions as one, with the duplicate group of each.

    Raises `UserError` if a sample is in two folds.
    """
    keys = [key for report in reports for key in report.predictions.keys]
    groups = np.concatenate([report.groups for report in reports])
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(
            f"'{twice}' is in this split of two folds, which cannot be pooled; use --split test"
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    predictions = Predictions.by_key(
        keys,
        np.concatenate([report.predictions.labels for report in reports]),
        np.concatenate([report.predictions.logits for report in reports]),
        reports[0].predictions.label_names,
    )
    return predictions, groups[order]


def fold_findings(
    reports: Sequence[Report], folds: Sequence[Fold], predictions: Predictions, groups: Any
) -> dict[str, Any]:
    """Scores over folds (mean, deviation, interval) and of the pooled predictions."""
    bootstrap = Bootstrap.of(groups)
    tables = [score_table(report.predictions, None) for report in reports]
    over_folds = {}
    for name in tables[0]:
        values = [table[name].value for table in tables]
        known = [value for value in values if value is not None]
        # A fold without a class has no area for it; do not average over fewer folds.
        over_folds[name] = spread(known) if len(known) == len(values) else None
    identity = reports[0].identity
    return {
        **{key: identity.get(key) for key in ("dataset", "split", "label_names", "configuration")},
        "protocol": f"{folds[0].rule}, {folds[0].count} folds",
        "folds": [
            {
                "fold": fold.number,
                "run": report.name,
                "num_samples": len(report.predictions.keys),
                "protocol_hash": report.identity["protocol"]["hash"],
                "shards_digest": report.identity["shards_digest"],
                "weights_sha256": report.identity["weights_sha256"],
                "code_version": report.identity["code_version"],
                "scores": as_json(table),
            }
            for fold, report, table in zip(folds, reports, tables, strict=True)
        ],
        "over_folds": over_folds,
        "pooled": {
            **compute_metrics(predictions),
            "scores": as_json(score_table(predictions, bootstrap)),
            "bootstrap": bootstrap_facts(bootstrap),
        },
    }


def folds_text(findings: Mapping[str, Any]) -> str:
    """Mean, deviation and interval over folds, next to the pooled score."""
    rows = [["", "mean over folds", "deviation", "95 % over folds", "pooled [95 % interval]"]]
    for name, title in SCORE_TITLES.items():
        over = findings["over_folds"][name]
        row = ["-", "-", "-"]
        if over is not None:
            row = [f"{over['mean']:.4f}", f"{over['deviation']:.4f}"]
            row.append(f"[{over['low']:.4f}, {over['high']:.4f}]")
        rows.append([title, *row, with_interval(findings["pooled"]["scores"][name])])
    sizes = ", ".join(str(one["num_samples"]) for one in findings["folds"])
    lines = [
        f"{findings['dataset']}, {findings['protocol']}, {findings['split']} split; "
        f"samples: {sizes}",
        "",
        *columns(rows),
        "The folds' training sets overlap: the interval over folds is too narrow.",
        *class_cautions(findings["pooled"]["confusion_matrix"], list(findings["label_names"])),
    ]
    return "\n".join(lines) + "\n"
