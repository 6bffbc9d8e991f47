"""Render the findings as `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsa.evaluation.modality_audit.audit import COST_SCORES, IMAGE_CHANGES, answers
from mmsa.evaluation.report.page import charts
from mmsa.evaluation.report.summary import fitted_on_note
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import SCORE_TITLES, title_of, with_interval

PAGE_NAME = "report.html"
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
    matrix = findings["confusion_matrix"]
    names = predictions.label_names
    text = environment.get_template(_TEMPLATE.name).render(
        title=title,
        findings=findings,
        fitted_on=fitted_on_note(findings["floors"]) if findings["floors"] else "",
        identity=rounded(dict(sorted(identity.items()))),
        names=names,
        score_titles=SCORE_TITLES,
        matrix=[
            [(count, count / sum(row) if sum(row) else None) for count in row] for row in matrix
        ],
        per_class=charts.per_class(findings["scores"], names),
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


def read_training(home: Path) -> list[dict[str, Any]]:
    """The readable lines of a run's metrics.jsonl; none for an export without a run."""
    lines = []
    try:
        text = (home / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue  # truncated when the run was killed, or being written
        if isinstance(content, dict):
            lines.append(content)
    return lines
