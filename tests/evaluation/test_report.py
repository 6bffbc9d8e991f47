"""The files of a report: their contents, their bytes, and what a failure leaves behind."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import configuration_hash
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.report.confusion_matrix import confusion_matrix_png
from mmsa.evaluation.report.files import (
    read_metrics,
    write_report,
    write_run_facts,
)
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.predictions_file import read_predictions, rows_of
from mmsa.evaluation.report.read_report import read_report
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.evaluation.scores.score_names import classification_report_text
from mmsa.export import read_export
from tests.exports import write_tiny_export

NAMES = ("negative", "neutral", "positive")
IDENTITY = {
    "split": "test",
    "shards_digest": "ab" * 32,
    "weights_sha256": "cd" * 32,
    "label_names": list(NAMES),
    "precision": "no",
}
FILES = ["confusion_matrix.png", "metrics.json", "predictions.jsonl", "report.txt"]


def four() -> Predictions:
    """Four samples, the third (a positive called negative) wrong; probabilities 1/2, 1/4, 1/4."""
    logits = np.zeros((4, 3), dtype=np.float32)
    logits[[0, 1, 2, 3], [0, 1, 0, 2]] = np.log(2)
    return Predictions(["a-1", "a-2", "é-1", "é-2"], np.array([0, 1, 2, 2]), logits, NAMES)


def facts_of(predictions: Predictions) -> list[SampleFacts]:
    """Each sample is its own group; the first two have text and image labels."""
    labels = [("positive", "negative"), ("neutral", "neutral")]
    return [
        SampleFacts(key, (0, row), row, f"text {row}", row, *pair, width=40, height=32)
        for row, (key, pair) in enumerate(
            zip(predictions.keys, [*labels, (None, None), (None, None)], strict=True)
        )
    ]


def written(
    directory: Path, identity: dict[str, object] = IDENTITY, file_format: str = "jsonl"
) -> dict[str, bytes]:
    predictions = four()
    facts = facts_of(predictions)
    seen = SeenBefore(np.zeros(4, dtype=bool))
    findings = compute_findings(predictions, facts, seen=seen, calibration=None, floors=None)
    rows = list(rows_of(predictions, facts, 1.0))
    write_report(directory, predictions, findings, identity, rows, file_format=file_format)
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_classification_report() -> None:
    expected = """\
              precision    recall  f1-score   support

    negative     0.5000    1.0000    0.6667         1
     neutral     1.0000    1.0000    1.0000         1
    positive     1.0000    0.5000    0.6667         2

    accuracy                         0.7500         4
   macro avg     0.8333    0.8333    0.7778         4
weighted avg     0.8750    0.7500    0.7500         4
"""
    assert classification_report_text(four()) == expected


def test_the_four_files(tmp_path: Path) -> None:
    files = written(tmp_path / "new" / "report")
    assert list(files) == FILES
    metrics = json.loads(files["metrics.json"])
    assert metrics["accuracy"] == 0.75
    assert metrics["loss"] == 0.866434  # 5/4 ln 2 = 0.86643398
    assert metrics["macro"]["f1"] == 0.777778
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert metrics["identity"] == IDENTITY
    assert files["metrics.json"].endswith(b"}\n")
    lines = files["predictions.jsonl"].decode("utf-8").splitlines()
    assert len(lines) == 4
    assert json.loads(lines[2]) == {
        "key": "é-1",
        "label": "positive",
        "predicted": "negative",
        "probabilities": {"negative": 0.5, "neutral": 0.25, "positive": 0.25},
        "logits": [0.6931472, 0.0, 0.0],  # float32 with all its digits
        "text_label": None,
        "image_label": None,
        "group": "0000000000000002",
    }
    first = json.loads(lines[0])
    assert (first["text_label"], first["image_label"]) == ("positive", "negative")
    report = files["report.txt"].decode("utf-8")
    assert report.startswith(classification_report_text(four()))
    assert "\nlog loss " in report
    assert "0.8664 [" in report
    assert f"\nweights_sha256: {'cd' * 32}\n" in report


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "first")
    with matplotlib.rc_context({"font.size": 20, "figure.facecolor": "red"}):
        second = written(tmp_path / "second")
    assert first == second
    assert (
        written(tmp_path / "first") == first
    )  # overwrites the old files, leaves nothing else behind


def test_the_order_of_the_identity_does_not_change_the_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "first")
    turned = dict(reversed(IDENTITY.items()))
    assert written(tmp_path / "second", turned)["metrics.json"] == first["metrics.json"]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_predictions_are_read_back_as_they_were(tmp_path: Path, file_format: str) -> None:
    written(tmp_path)
    files = written(tmp_path, file_format=file_format)
    # The predictions file of the earlier report is gone.
    assert [name for name in files if name.startswith("pred")] == [f"predictions.{file_format}"]
    read, groups = read_predictions(tmp_path, NAMES)
    expected = four()
    assert read.keys == expected.keys
    assert (read.logits == expected.logits).all()
    assert (read.labels == expected.labels).all()
    assert groups.tolist() == [0, 1, 2, 3]


def test_files_that_are_not_a_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither predictions\.jsonl nor predictions\.parquet"):
        read_predictions(tmp_path, NAMES)
    (tmp_path / "predictions.jsonl").write_text('{"key": "a", "label": "sad"}\n')
    with pytest.raises(UserError, match="does not contain the predictions of a report"):
        read_predictions(tmp_path, NAMES)
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.5}')
    with pytest.raises(UserError, match="an earlier version wrote it"):
        read_metrics(tmp_path)


def test_files_of_two_evaluations_are_not_one_report(tmp_path: Path) -> None:
    written(tmp_path)
    rows = tmp_path / "predictions.jsonl"
    own = rows.read_text(encoding="utf-8")
    assert read_report(tmp_path, "a").predictions.keys == four().keys
    rows.write_text(own.replace("0.6931472", "0.9"), encoding="utf-8")  # labels as before
    with pytest.raises(UserError, match="predictions are of different evaluations"):
        read_report(tmp_path, "a")
    # Files that are just being replaced are waited for.
    replaced = threading.Timer(0.3, rows.write_text, [own], {"encoding": "utf-8"})
    replaced.start()
    assert read_report(tmp_path, "a").predictions.keys == four().keys
    replaced.join()


def test_run_facts(tmp_path: Path) -> None:
    write_run_facts(tmp_path, {"world_size": 2, "seconds": 1.23456789, "openings": 1})
    expected = '{\n  "world_size": 2,\n  "seconds": 1.23457,\n  "openings": 1\n}\n'
    assert (tmp_path / "evaluation_run.json").read_text() == expected


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*file"):
        written(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failure_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.json" / "x").mkdir(parents=True)  # a file cannot be renamed onto this
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if ".tmp-" in path.name] == []


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def share_of_dark_blue(png: bytes) -> float:
    image = pixels(png).astype(int)
    dark = (abs(image - np.array([8, 48, 107])).max(axis=2) < 12).mean()  # the end of the scale
    return float(dark)


def test_the_image_shows_the_matrix() -> None:
    right = confusion_matrix_png([[9, 0, 0], [0, 4, 0], [0, 0, 2]], NAMES, title="val, n = 15")
    height, width = pixels(right).shape[:2]
    assert 600 < height < 1200
    assert 700 < width < 1400
    assert len(np.unique(pixels(right).reshape(-1, 3), axis=0)) > 100
    # Three of nine cells are at 100 %; the matrix fills somewhat less than half of the image.
    assert 0.10 < share_of_dark_blue(right) < 0.25
    even = confusion_matrix_png([[3, 3, 3], [3, 3, 3], [3, 3, 3]], NAMES, title="val, n = 27")
    assert share_of_dark_blue(even) < 0.02  # the colour bar alone
    # Counts change the numbers in the image even if the rates stay the same.
    more = confusion_matrix_png([[6, 6, 6], [3, 3, 3], [3, 3, 3]], NAMES, title="val, n = 27")
    assert 0 < (pixels(more) != pixels(even)).any(axis=2).mean() < 0.02


def test_images_of_unusual_matrices() -> None:
    empty_row = confusion_matrix_png([[0, 0], [1, 3]], ["a$b$", "c_d"], title="n = 4 $x$")
    assert pixels(empty_row).shape[0] > 400
    names = [f"a long class name {i}" for i in range(12)]
    many = confusion_matrix_png(np.eye(12, dtype=int).tolist(), names, title="n = 12")
    # Wider than for three classes, and every cell of the diagonal is visible.
    assert pixels(many).shape[1] > 1500
    assert 0.02 < share_of_dark_blue(many) < 0.10


def test_runs_that_were_operated_otherwise_are_one_configuration(tmp_path: Path) -> None:
    def hashed(name: str, **sections: dict[str, object]) -> str:
        export = write_tiny_export(tmp_path / name, **sections)
        return configuration_hash(read_export(export))

    first = hashed("a", run={"max_time": "4:00:00", "seed": 1})
    others = {"run": {"collective_timeout_s": 60, "profile": True, "stop_timeout_s": 5.0}}
    operated = hashed("b", data={"timeout_s": 900.0}, gpu={"copy_stream": False}, **others)
    assert first == operated == hashed("c")
    assert hashed("d", optim={"text_lr": 1e-3}) != first
