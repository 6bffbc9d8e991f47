"""Render the findings as `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.evaluation.modality_audit.audit import COST_SCORES, IMAGE_CHANGES, answers
from mmsa.evaluation.report.page import charts
from mmsa.evaluation.report.summary import fitted_on_note, made_of_text
from mmsa.evaluation.scores.confusions import (
    RATES_UP_TO,
    SHOWN,
    classes_with_most_errors,
    most_confused,
    shown_matrix,
)
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import SCORE_TITLES, title_of, with_interval
from mmsa.foundation.parsing import parse_json

PAGE_NAME = "report.html"
PAIRS_OF_PAGE = 30
_TEMPLATE = Path(__file__).parent / "report.html.j2"


def render(
    predictions: Predictions,
    findings: Mapping[str, Any],
    identity: Mapping[str, Any],
    *,
    cards: Sequence[Mapping[str, Any]],
    training: Sequence[Mapping[str, Any]],
    audit: Mapping[str, Any] | None,
    openings: int,
    title: str,
    private: bool,
) -> bytes:
    """The page in UTF-8. All names, keys and texts are escaped, whatever their origin.

    `cards` are the samples shown, `training` the lines of the run's metrics.jsonl, `audit` the
    content of modality_audit.json.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["interval"] = with_interval
    environment.filters["title_of"] = title_of
    names = predictions.label_names
    shown = shown_matrix(findings["confusion_matrix"], names)
    few = len(names) <= RATES_UP_TO
    text = environment.get_template(_TEMPLATE.name).render(
        title=title,
        findings=findings,
        fitted_on=fitted_on_note(findings["floors"]) if findings["floors"] else "",
        made_of=made_of_text(findings),
        identity=rounded(dict(sorted(identity.items()))),
        names=names,
        score_titles=SCORE_TITLES,
        matrix=[
            [(count, count / sum(row) if sum(row) else None) for count in row]
            for row in shown.counts.tolist()
        ],
        matrix_names=shown.names,
        matrix_note=shown.note,
        few=few,
        pairs=[] if few else most_confused(findings["confusion_matrix"], names, PAIRS_OF_PAGE),
        per_class=_per_class(findings, names),
        curve_note=charts.curve_note(predictions),
        roc=charts.curves(predictions, "roc"),
        pr=charts.curves(predictions, "pr"),
        reliability=charts.reliability(findings["calibration"]),
        training=charts.training(training),
        audit=audit,
        audit_scores=COST_SCORES[:-1],
        answers=[] if audit is None else answers(audit),
        image_changes=[str(change) for change in IMAGE_CHANGES],
        openings=openings,
        private=private,
        # A text that contains "</script>" must not end the script element.
        data=json.dumps({"names": names, "cards": list(cards)}, ensure_ascii=False).replace(
            "<", "\\u003c"
        ),
    )
    return text.encode("utf-8")


def _per_class(findings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Bars of all three scores of few classes; of many, F1 of those with the most errors."""
    if len(names) <= RATES_UP_TO:
        return charts.per_class(findings["scores"], names)
    matrix = np.asarray(findings["confusion_matrix"], dtype=np.int64)
    chosen = [names[c] for c in classes_with_most_errors(matrix, SHOWN)]
    return charts.f1_of_classes(findings["scores"], chosen)


def read_training(home: Path) -> list[dict[str, Any]]:
    """The readable lines of a run's metrics.jsonl; none for an export without a run."""
    lines = []
    try:
        text = (home / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        try:
            measures = parse_json(line)
        except ValueError:
            continue  # truncated when the run was killed
        if isinstance(measures, dict) and isinstance(measures.get("step"), int):
            lines.append(measures)
    return lines
