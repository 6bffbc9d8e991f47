"""Evaluation on other shards than a model was trained on: names, counts and floors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import TINY, pack_synthetic

from evaluate import main as evaluate_main
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.evaluation.floors.fitting import read_texts
from mmsa.evaluation.floors.tfidf import tfidf_floor
from mmsa.evaluation.inputs.eval_target import data_suffix
from mmsa.evaluation.inputs.ledger import read_ledger
from mmsa.labels import class_map
from train import main as train_main


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> Path:
    """The shards of training, in a place from which they can be taken away."""
    return shutil.copytree(shards, tmp_path / "own")


@pytest.fixture
def run_dir(own: Path, tmp_path: Path) -> Path:
    words = [*TINY, f"data.shards={own}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main(words) == 0
    return tmp_path / "run"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("other"), samples=140, ratios="4:2:4")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def expected_floor(trained_on: Path, evaluated: Path) -> float:
    """Weighted F1 of TF-IDF, fitted on one packed set and tested on another."""
    sets = [(trained_on, "train"), (trained_on, "val"), (evaluated, "test")]
    manifests = [load_manifest(shards) for shards, _ in sets]
    classes = class_map(manifests[0].classes, None)
    texts = [
        read_texts(SplitReader(shards, manifest, split, classes))
        for (shards, split), manifest in zip(sets, manifests, strict=True)
    ]
    floor = tfidf_floor(*texts[0], *texts[1], *texts[2], classes.names)
    value: float = floor.metrics["weighted"]["f1"]
    return value


def test_a_report_on_other_data_stands_by_itself(
    run_dir: Path, own: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_main([str(run_dir)]) == 0
    report = run_dir / "reports" / "test-best"
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    assert "fitted_on" not in read(report / "metrics.json")["floors"]
    assert "opened 1 time(s) by" in capsys.readouterr().out

    digest = load_manifest(other).digest
    elsewhere = run_dir / "reports" / f"test-best-mvsa-single-{digest[:8]}"
    assert evaluate_main([str(run_dir), "--shards", str(other)]) == 0
    printed = capsys.readouterr().out
    assert f"opened 1 time(s) by {run_dir}, and 1 time(s) that of other data" in printed
    page = (elsewhere / "report.html").read_text()
    assert "the test split has been opened 1 time(s)" in page
    assert "<h1>run: test split of mvsa-single</h1>" in page
    assert read(elsewhere / "evaluation_run.json")["test_split_openings"] == 1
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before
    assert read_ledger(run_dir).num_openings == 2

    # The floor knows the training data that the model knows.
    floors = read(elsewhere / "metrics.json")["floors"]
    trained = {"dataset": "mvsa-single", "shards_digest": load_manifest(own).digest}
    assert floors["fitted_on"] == {**trained, "same_as_model": True}
    value = floors["tfidf"]["scores"]["weighted_f1"]["value"]
    assert value == pytest.approx(expected_floor(own, other), abs=1e-5)
    assert "fitted on the model&#39;s own training data, mvsa-single (" in page

    # Without it, the report says what had to do.
    own.rename(own.with_name("elsewhere"))
    words = ["--shards", str(other), "--no-page"]
    assert evaluate_main([str(run_dir), *words]) == 0
    printed = capsys.readouterr().out
    assert f"opened 2 time(s) by {run_dir}, and 1 time(s) that of other data" in printed
    assert "its own training data is not at its place any more" in printed
    floors = read(elsewhere / "metrics.json")["floors"]
    assert floors["fitted_on"] == {
        "dataset": "mvsa-single",
        "shards_digest": digest,
        "same_as_model": False,
    }
    value = floors["tfidf"]["scores"]["weighted_f1"]["value"]
    assert value == pytest.approx(expected_floor(other, other), abs=1e-5)


def test_a_comparison_on_other_data_stands_by_itself(run_dir: Path, other: Path) -> None:
    targets = [str(run_dir), str(run_dir.with_name("second"))]
    words = [*TINY, f"data.shards={run_dir.parent / 'own'}", f"run.dir={targets[1]}"]
    assert train_main([*words, "train.max_steps=1", "run.seed=1"]) == 0
    words = ["--shards", str(other), "--compare", "--no-floors", "--no-page"]
    assert evaluate_main([*targets, *words]) == 0
    suffix = data_suffix("mvsa-single", load_manifest(other).digest)
    found = [path.parent.name for path in run_dir.parent.rglob("comparison.json")]
    assert found == [f"comparison-test{suffix}"]
    reports = [path.parent for path in run_dir.parent.rglob("metrics.json")]
    assert [path.name for path in reports] == [f"test-best{suffix}"] * 2
    # Reports that exist are compared without opening anything, into the same place.
    openings = read_ledger(run_dir).num_openings
    assert evaluate_main([*map(str, reports), "--compare"]) == 0
    assert read_ledger(run_dir).num_openings == openings
    found = [path.parent.name for path in run_dir.parent.rglob("comparison.json")]
    assert set(found) == {f"comparison-test{suffix}"}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("tweets", "-tweets-01234567"),
        ("Umfrage März/2024", "-Umfrage-M-rz-2024-01234567"),
        ("../..", "-data-01234567"),
        ("", "-data-01234567"),
        ("x" * 300, f"-{'x' * 40}-01234567"),
    ],
)
def test_any_name_of_a_data_set_names_a_directory(name: str, suffix: str) -> None:
    assert data_suffix(name, "0123456789abcdef") == suffix


def test_a_failed_start_is_explained(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, f"data.shards={own}", f"run.dir={run_dir}", "launch.world_size=2"]
    assert train_main(words) == 2
    capsys.readouterr()
    assert evaluate_main([str(run_dir)]) == 2
    told = capsys.readouterr().err
    assert f"{run_dir} has no model to evaluate: its training failed at step 0 (" in told
    assert "launch.world_size=2, but this launch has 1 process(es)" in told
    assert "Mend that and repeat the training command" in told
