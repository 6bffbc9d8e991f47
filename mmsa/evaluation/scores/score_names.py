"""How scores are named and printed: titles, intervals and aligned columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmsa.evaluation.scores.metrics import Predictions

# Flat names of scores -> titles, in the order of a summary.
SCORE_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC area, one vs rest",
    "pr_auc": "PR area, one vs rest",
    "loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
}


def title_of(score: str) -> str:
    """The title of a flat name: "F1 of neutral" for `f1/neutral`."""
    name, slash, label = score.partition("/")
    if slash:
        short = {"f1": "F1", "roc_auc": "ROC area", "pr_auc": "PR area"}.get(name, name)
        return f"{short} of {label}"
    return SCORE_TITLES.get(score, score.replace("_", " "))


def with_interval(score: Mapping[str, Any], signed: bool = False) -> str:
    """`0.6821 [0.6332, 0.7310]`; a dash if undefined."""
    if score["value"] is None:
        return "-"
    shown = f"{score['value']:{'+' if signed else ''}.4f}"
    if score.get("low") is None:
        return shown
    return f"{shown} [{score['low']:.4f}, {score['high']:.4f}]"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, two spaces apart; the first left-aligned, the others right."""
    table = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def classification_report_text(predictions: Predictions) -> str:
    """scikit-learn's classification report: four digits, class names in the order of the labels."""
    from sklearn.metrics import classification_report

    return str(
        classification_report(
            predictions.labels,
            predictions.predicted,
            labels=list(range(len(predictions.label_names))),
            target_names=list(predictions.label_names),
            digits=4,
            zero_division=0,
        )
    )
