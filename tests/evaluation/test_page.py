"""report.html: its contents, what it must not contain, and its display in a real browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from packed import open_split, sample, seal, write_split

from mmsa.data.reader import SplitReader
from mmsa.evaluation.inputs.sample_facts import SampleFacts, read_facts
from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.modality_audit.audit import audit
from mmsa.evaluation.modality_audit.changed_inputs import Change
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.page.gallery import MAX_ERRORS, cards, choose_samples, thumbnail
from mmsa.evaluation.report.page.render import read_training, render
from mmsa.evaluation.scores.metrics import Predictions
from shards.packing.tars import PackedSample

NAMES = ("negative", "neutral", "positive")
NASTY = "</script><script>document.title='broken'</script> <b>& \"ö\" ''"
TRAINING = [
    {"kind": "train", "step": 1, "loss": 1.0},
    {"kind": "validation", "step": 1, "loss": 0.9, "accuracy": 0.5, "macro_f1": 0.4,
     "weighted_f1": 0.5},
]  # fmt: skip


def make_page(
    directory: Path, *, private: bool = False, audited: bool = False, count: int = 60
) -> bytes:
    """A page of `count` packed samples, every third wrong; the first wrong one has a nasty text."""
    samples = [sample(number) for number in range(count)]
    samples[0] = PackedSample(**{**vars(samples[0]), "text": NASTY})
    manifest = seal(directory, {"train": write_split(directory, "train", [samples])})
    reader = open_split(directory, manifest)
    facts = read_facts(reader)
    predictions = third_wrong(facts, reader)
    findings = compute_findings(
        predictions, facts, seen=SeenBefore(None, "<why>"), calibration=None, floors=None
    )
    identity = {
        **{"split": "test", "dataset": "tiny", "protocol": {"name": "tiny", "hash": "0" * 64}},
        **{"weights_sha256": "cd" * 32, "label_names": list(NAMES)},
    }
    return render(
        predictions,
        findings,
        identity,
        cards=cards(predictions, facts, reader, temperature=1.0, private=private),
        training=TRAINING,
        audit=audit(predictions, dict.fromkeys(Change, predictions), facts) if audited else None,
        openings=3,
        title="a <run>",
        private=private,
    )


def third_wrong(facts: list[SampleFacts], reader: SplitReader) -> Predictions:
    labels = np.array([reader.read(*one.place).label for one in facts])
    rows = np.array([int(one.key.rpartition("-")[2]) for one in facts])
    predicted = np.where(rows % 3 == 0, (labels + 1) % 3, labels)
    logits = np.eye(3)[predicted] * (1 + rows[:, None] / 50)
    return Predictions([one.key for one in facts], labels, logits.astype(np.float32), NAMES)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_page_is_self_contained_and_escapes_texts(tmp_path: Path) -> None:
    content = make_page(tmp_path)
    page = content.decode("utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "broken'</script>" not in page  # no text ends the script element
    assert "a &lt;run&gt;" in page
    assert "Unknown: &lt;why&gt;." in page
    assert "the test split has been opened 3 time(s)" in page
    assert page.count("<svg") == 6
    found = data_of(page)
    wrong = [card for card in found["cards"] if card["kind"] == "error"]
    assert len(wrong) == 20
    confidence = [max(card["probabilities"]) for card in wrong]
    assert confidence == sorted(confidence, reverse=True)
    nasty = next(card for card in wrong if card["key"] == "tiny-train-0")
    assert nasty["text"] == NASTY
    assert nasty["picture"].startswith("data:image/jpeg;base64,")
    assert (nasty["true"], nasty["predicted"]) == ("negative", "neutral")
    assert make_page(tmp_path) == content


def test_the_page_shows_the_audit_with_its_answers(tmp_path: Path) -> None:
    page = make_page(tmp_path, audited=True).decode("utf-8")
    assert page.count("makes no significant difference") == 6
    table = re.search(r'<table id="audit">.*?</table>', page, re.S)
    assert table
    assert table[0].count("<tr>") == 2 + len(Change)
    # The interval is a separate element, which gets its own line in a narrow window.
    assert '<td>+0.0000 <span class="interval">[0.0000, 0.0000]</span></td>' in table[0]
    assert re.search(r'<table id="audit-slices">.*?long text', page, re.S)
    assert 'id="audit"' not in make_page(tmp_path).decode("utf-8")


def test_a_private_page_has_neither_texts_nor_images(tmp_path: Path) -> None:
    page = make_page(tmp_path, private=True).decode("utf-8")
    assert {key for card in data_of(page)["cards"] for key in card} == {
        *{"kind", "key", "true", "predicted", "probabilities", "text_label", "image_label"}
    }
    assert "data:image" not in page
    assert not any(f"word{number}" in page for number in range(13))
    assert "Texts and images were left out" in page


def test_rare_confusions_are_shown_as_well_as_frequent_ones() -> None:
    """2,000 errors of one kind and one of another: both are there, within the limit."""
    labels = np.zeros(2001, dtype=np.int64)
    logits = np.tile(np.array([[0.0, 3.0, 0.0]], dtype=np.float32), (2001, 1))
    logits[1500] = (0.0, 0.0, 0.1)
    keys = [f"{i:05d}" for i in range(2001)]
    shown = choose_samples(Predictions(keys, labels, logits, NAMES))
    errors = [row for row, kind in shown if kind == "error"]
    assert len(errors) == MAX_ERRORS
    assert 1500 in errors
    assert len({row for row, _ in shown}) == len(shown)


def test_bytes_that_are_not_an_image_have_no_thumbnail() -> None:
    assert thumbnail(b"not an image") is None


def test_truncated_lines_of_training_are_skipped(tmp_path: Path) -> None:
    assert read_training(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert read_training(tmp_path) == [{"kind": "train", "step": 1}]


def dom(browser: str, page: Path, fragment: str = "") -> str:
    """The page's document after its script has run, as headless Chromium writes it."""
    done = subprocess.run(
        [
            *[browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            *["--virtual-time-budget=2000", f"--user-data-dir={page.parent / 'profile'}"],
            *["--dump-dom", f"{page.as_uri()}{fragment}"],
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout.decode("utf-8")


def test_a_browser_shows_the_samples_and_filters_them(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(make_page(tmp_path))
    shown = dom(browser, page)
    assert "20 of 20 shown" in shown
    assert shown.count('class="card"') == 20
    assert html.escape(NASTY, quote=False) in shown  # as text
    assert "<title>a &lt;run&gt;</title>" in shown  # the script in the text did not run
    assert shown.count('<img src="data:image/jpeg;base64,') == 20
    # Labels cycle through the classes, so every third sample is of one class.
    assert "0 of 0 shown" in dom(browser, page, "#true=neutral")
    assert "20 of 20 shown" in dom(browser, page, "#true=negative&predicted=neutral")
    uncertain = dom(browser, page, "#kind=uncertain&predicted=positive")
    assert "20 of 20 shown" in uncertain
    assert "positive, predicted correctly" in uncertain
