"""Class names with slashes, markup, quotes and marks of direction, in all parts of a report."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from made_up import random_predictions
from test_many_classes import IDENTITY, facts_of

from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.report.confusion_matrix import confusion_matrix_png
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.page.charts import curves
from mmsa.evaluation.report.page.render import render
from mmsa.evaluation.report.summary import summary_text

NAMES = ("a/b", "100 %s $x$", '"it\'s"', "\u202eturned", "</script><b>", "f1/a", "_other")


def test_a_report_shows_them_as_they_are() -> None:
    predictions = replace(random_predictions(60, len(NAMES), 0), label_names=NAMES)
    findings = compute_findings(
        *(predictions, facts_of(predictions)), seen=SeenBefore(None, ""), calibration=None,
        floors=None,
    )  # fmt: skip
    page = render(
        *(predictions, findings, IDENTITY), cards=[], training=[], audit=None, openings=0,
        title="", private=True,
    ).decode("utf-8")  # fmt: skip
    assert "</script><b>" not in page
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert "100 %s $x$" in page
    assert summary_text(findings)
    for kind in ("roc", "pr"):
        shown = "".join(ET.fromstring(curves(predictions, kind)).itertext())
        for name in ("a/b", "100 %s $x$", "</script><b>", "_other"):
            assert name in shown
    matrix = [[1] * len(NAMES) for _ in NAMES]
    assert confusion_matrix_png(matrix, NAMES, title="$x").startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_a_split_of_one_class_has_no_curves_to_name() -> None:
    predictions = random_predictions(9, 3, 0)
    predictions = replace(predictions, labels=np.zeros(9, dtype=np.int64))
    assert "false positive rate" in curves(predictions, "roc")
