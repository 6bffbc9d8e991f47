"""`docs/extending.md`: its examples run as they are, through the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.harness import TINY, pack_synthetic

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = ("product_fusion", "poly_loss", "small_cnn", "csv_tracker")
OPTIONS = [word for module in MODULES for word in ("--import", module)]
OF_THE_MODEL = ["poly_loss", "product_fusion", "small_cnn"]
SETTINGS = [
    *["model.fusion=null", "model.fusion.name=product", "model.fusion.width=16"],
    *["model.loss.name=poly1", "model.loss.epsilon=2"],
    *["model.image_encoder=null", "model.image_encoder.name=cnn:small"],
    *["model.image_encoder.weights=none", "model.image_encoder.config={channels: 4}"],
    *["model.image_encoder.train=last_n", "model.image_encoder.last_n=1"],
    *["run.trackers=[tensorboard, csv]", "train.max_steps=2"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the page's examples as modules."""
    place = tmp_path_factory.mktemp("extensions")
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.S):
        (place / name).write_text(code, encoding="utf-8")
    return place


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, which its modules are then imported from."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def trained(folder: Path, data: Path, run_dir: Path, *words: str) -> list[str]:
    return [
        str(ROOT / "train.py"),
        *words,
        *TINY,
        *SETTINGS,
        f"data.shards={data}",
        f"run.dir={run_dir}",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("synthetic"), samples=60, ratios="6:2:2")


@pytest.fixture(scope="module")
def run_dir(folder: Path, data: Path) -> Path:
    """A run whose fusion, loss, image encoder and one tracker are those of the page."""
    run_dir = folder / "run"
    done = command(folder, *trained(folder, data, run_dir, *OPTIONS))
    assert done.returncode == 0, done.stderr
    return run_dir


def test_the_page_has_an_example_of_each_part(folder: Path) -> None:
    modules = {path.stem for path in folder.glob("*.py")}
    assert modules == {*MODULES, "json_pairs"}


def test_the_tracker_gets_the_measures(run_dir: Path) -> None:
    lines = (run_dir / "measures.csv").read_text().splitlines()
    assert lines[0] == "step,measure,value"
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert f"1,train/loss,{logged[0]['loss']}" in lines
    assert f"1,train/fusion_text_size,{logged[0]['fusion_text_size']}" in lines
    assert any(line.startswith("2,validation/weighted_f1,") for line in lines)
    assert list((run_dir / "tensorboard").iterdir())


def test_the_export_names_the_modules_of_its_model(run_dir: Path) -> None:
    for export in (run_dir / "best", *run_dir.glob("checkpoints/*/export")):
        assert json.loads((export / "export.json").read_text())["extensions"] == OF_THE_MODEL


def test_the_export_is_evaluated_with_the_modules(folder: Path, run_dir: Path) -> None:
    imports = [word for module in OF_THE_MODEL for word in ("--import", module)]
    words = [str(ROOT / "evaluate.py"), str(run_dir), *imports, "--no-page", "--num-workers", "0"]
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    assert "weighted" in done.stdout
    assert list(run_dir.glob("reports/*/metrics.json"))


def test_without_the_modules_the_export_says_which_it_needs(
    folder: Path, data: Path, run_dir: Path
) -> None:
    options = "--import poly_loss --import product_fusion --import small_cnn"
    done = command(folder, str(ROOT / "evaluate.py"), str(run_dir))
    assert done.returncode == 2
    assert f"add {options} to the command" in done.stderr
    load = f"import mmsa; mmsa.load({str(run_dir)!r})"
    done = command(folder, "-c", load)
    assert "In Python: import poly_loss, product_fusion, small_cnn first" in done.stderr
    done = command(folder, "-c", f"import poly_loss, product_fusion, small_cnn; {load}")
    assert done.returncode == 0, done.stderr


def test_a_study_hands_the_modules_to_its_processes(folder: Path, data: Path) -> None:
    (folder / "study.yaml").write_text("variants: {product: []}\n")
    study = ["-m", "launch", "study", "study.yaml", "--out", "study"]
    settings = [*TINY, *SETTINGS, f"data.shards={data}", "data.num_workers=0"]
    done = command(folder, *study, *OPTIONS, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    # The state is looked at without running code that a file names; its commands are whole.
    done = command(folder, *study, "--status")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "study" / "study.json").read_text())
    assert found["num_done"] == 1
    assert found["commands"]["product"][0].endswith(" ".join(OPTIONS))
    done = command(folder, *study, "--final")
    assert done.returncode == 2
    assert "the study was trained with --import product_fusion" in done.stderr


def test_without_the_modules_all_unknown_names_are_reported(folder: Path, data: Path) -> None:
    done = command(folder, *trained(folder, data, folder / "other"))
    assert done.returncode == 2
    assert "4 problems" in done.stderr
    for problem in (
        "model.fusion.name='product' is not a fusion; ",
        "model.image_encoder.name='cnn:small' is not an image encoder; ",
        "model.loss='poly1' is not a loss; ",
        "run.trackers: 'csv' is not a tracker; ",
    ):
        assert problem in done.stderr
    assert "--import" in done.stderr


def test_wrong_settings_of_the_parts_are_reported_together(folder: Path, data: Path) -> None:
    wrong = [
        "model.fusion.widht=3",
        "model.loss.epsilon=-1",
        "model.image_encoder.config={depth: 3}",
    ]
    done = command(folder, *trained(folder, data, folder / "other", *OPTIONS), *wrong)
    assert done.returncode == 2
    assert "3 problems" in done.stderr
    assert "did you mean model.fusion.width?" in done.stderr
    assert "model.loss.epsilon=-1: Input should be greater than or equal to 0" in done.stderr
    assert "unknown key model.image_encoder.config.depth" in done.stderr


def test_the_source_packs(folder: Path) -> None:
    raw = folder / "raw"
    raw.mkdir()
    rows = []
    for number in range(30):
        Image.new("RGB", (40, 32), (8 * number, 0, 0)).save(raw / f"{number}.jpg")
        text = "" if number == 7 else f"words of pair {number}"
        label = ("negative", "positive")[number % 2]
        rows.append({"id": str(number), "text": text, "image": f"{number}.jpg", "label": label})
    (raw / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["-m", "shards", "pack", "json-pairs", str(raw), str(folder / "packed")]
    done = command(folder, *words, "--import", "json_pairs", "--quiet")
    assert done.returncode == 0, done.stderr
    rejected = (folder / "packed" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source_id"] for line in rejected] == ["7"]
    manifest = json.loads((folder / "packed" / "manifest.json").read_text())
    assert manifest["classes"] == ["negative", "positive"]
