"""evaluate.py on several runs: comparison, audit, calibration, folds, and what it refuses."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import TINY

import mmsa
from evaluate import main as evaluate_main
from launch.__main__ import main as launch_main
from mmsa.evaluation import predict
from mmsa.evaluation.inputs.ledger import read_ledger
from shards.__main__ import main as shards_main
from train import main as train_main


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one configuration and one of another, each of one epoch."""
    directory = tmp_path_factory.mktemp("runs")
    found = []
    for name, settings in (
        ("a-0", ["run.seed=0"]),
        ("a-1", ["run.seed=1"]),
        ("b", ["run.seed=0", "model.fusion.hidden=[8]"]),
    ):
        found.append(directory / name)
        settings = [*TINY, f"data.shards={shards}", f"run.dir={found[-1]}", *settings]
        assert train_main([*settings, "train.epochs=1"]) == 0
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_runs_are_compared_and_an_existing_report_is_reused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [str(run) for run in runs]
    assert evaluate_main([*targets, "--compare", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "a-0 (2 seeds), seeds 0, 1: mean weighted F1" in printed
    found = read(tmp_path / "comparison.json")
    assert sorted(len(one["runs"]) for one in found["contenders"]) == [1, 2]
    assert len(found["pairs"]) == 1
    assert [read_ledger(run).num_openings for run in runs] == [1, 1, 1]
    # Existing reports are read; the test split is not opened again.
    reports = [str(run / "reports" / "test-best") for run in runs]
    assert evaluate_main([*reports, "--compare", "--out", str(tmp_path / "again")]) == 0
    again = read(tmp_path / "again" / "comparison.json")
    assert [one["differences"] for one in again["pairs"]] == [
        one["differences"] for one in found["pairs"]
    ]
    assert [read_ledger(run).num_openings for run in runs] == [1, 1, 1]


def test_a_comparison_that_calibrates_evaluates_again(runs: list[Path], tmp_path: Path) -> None:
    first, second = runs[0], runs[2]
    words = [str(first), str(second), "--compare", "--split", "val", "--out", str(tmp_path)]
    assert evaluate_main(words) == 0
    stored = [run / "best" / "calibration.json" for run in (first, second)]
    for file in stored:
        file.unlink(missing_ok=True)
    assert evaluate_main([*words, "--calibrate"]) == 0
    assert all(file.exists() for file in stored)


def test_cores_that_compute_further_batches_change_no_byte(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("metrics.json", "predictions.jsonl")
    lanes: list[int] = []
    real = predict.in_lanes

    def noted(*arguments: Any, **options: Any) -> Any:
        lanes.append(options["lanes"])
        return real(*arguments, **options)

    monkeypatch.setattr(predict, "in_lanes", noted)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            out = tmp_path / str(threads)
            words = [str(runs[0]), "--split", "val", "--no-page", "--batch-size", "7"]
            assert evaluate_main([*words, "--out", str(out)]) == 0
        finally:
            torch.set_num_threads(1)
        found.append([(out / name).read_bytes() for name in names])
    assert lanes == [1, 3]
    assert found[0] == found[1]


def test_a_comparison_across_protocols_opens_nothing(
    runs: list[Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, other = str(shards.parent / "raw"), tmp_path / "random"
    packing = ["--image-short-side", "64", "--protocol", "random", "--quiet"]
    assert shards_main(["pack", "mvsa-single", raw, str(other), *packing]) == 0
    settings = [*TINY, f"data.shards={other}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main(settings) == 0
    before = read_ledger(runs[0]).num_openings
    assert evaluate_main([str(runs[0]), str(tmp_path / "run"), "--compare"]) == 2
    told = capsys.readouterr().err
    assert "cannot be compared: the protocol of one is clean (" in told
    assert "of the other random (" in told
    assert read_ledger(runs[0]).num_openings == before
    assert read_ledger(tmp_path / "run").num_openings == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}", "{1}"], "2 targets were given; add --compare, --folds or --ensemble"),
        (["{0}", "--compare"], "need several targets; one was given"),
        (["{0}", "{1}", "--compare", "--metric", "f1"], "--metric f1 is not a score"),
        (["{0}", "{0}", "--compare"], "are the same weights"),
        (["{0}", "{1}", "--folds"], "the protocol 'clean', which has no folds"),
        (["{0}", "--calibrate"], "never on 'test'; add --split val"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_the_test_split_is_opened(
    runs: list[Path], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    before = read_ledger(runs[0]).num_openings
    assert evaluate_main([part.format(*runs) for part in arguments]) == 2
    assert words in capsys.readouterr().err
    assert read_ledger(runs[0]).num_openings == before


def test_the_modality_audit_and_parquet(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    arguments = [str(runs[0]), "--split", "val", "--modality-audit", "--predictions", "parquet"]
    assert evaluate_main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("weighted avg") < printed.index("modality audit")
    assert "the image instead of none " in printed
    audit, metrics = read(tmp_path / "modality_audit.json"), read(tmp_path / "metrics.json")
    assert audit["whole"]["scores"]["accuracy"] == metrics["scores"]["accuracy"]
    assert len(audit["changes"]) == 5
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.num_rows == metrics["num_samples"]
    assert {"key", "label", "probabilities", "logits", "text_label", "group"} <= set(
        table.column_names
    )


def test_the_temperature_of_training_is_that_of_calibrate(
    runs: list[Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "export"
    shutil.copytree(runs[0] / "best", copy)
    fitted = read(copy / "calibration.json")
    assert fitted["fitted_on"] == "val"
    (copy / "calibration.json").unlink()
    assert evaluate_main([str(copy), "--split", "val"]) == 0
    assert "the export has no temperature" in capsys.readouterr().out
    assert not (copy / "calibration.json").exists()
    assert evaluate_main([str(copy), "--split", "val", "--calibrate"]) == 0
    again = read(copy / "calibration.json")
    assert again["temperature"] == pytest.approx(fitted["temperature"], rel=1e-3)
    metrics = read(copy / "reports" / "val-export" / "metrics.json")
    assert metrics["calibration"]["temperature"] == again["temperature"]
    # Prediction on raw input applies the temperature, unless told not to.
    raw = shards.parent / "raw" / "data"
    number = sorted(path.stem for path in raw.glob("*.jpg"))[0]
    pair = ([(raw / f"{number}.txt").read_bytes().decode("gb18030")], [raw / f"{number}.jpg"])
    predictor = mmsa.load(copy, device="cpu")
    calibrated = predictor.predict(*pair).probabilities[0]
    plain = predictor.predict(*pair, calibrated=False).probabilities[0]
    powers = plain ** (1 / again["temperature"])
    assert calibrated == pytest.approx(powers / powers.sum(), rel=1e-5)


def run_line(line: str) -> None:
    """Run a printed command line through its `main`, in this process."""
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "shards"]:
        assert shards_main([*words[3:], "--quiet"]) == 0
        return
    script = next(place for place, word in enumerate(words) if word.endswith(".py"))
    mains = {"train.py": train_main, "evaluate.py": evaluate_main}
    assert mains[words[script]](words[script + 1 :]) == 0


def test_a_kfold_experiment_end_to_end_by_its_printed_lines(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = str(shards.parent / "raw")
    arguments = ["mvsa-single", raw, str(tmp_path), "--protocol", "kfold:3"]
    arguments += ["--pack-options", "--image-short-side 64"]
    arguments += ["--config", "launch/runs/demo.yaml", "--", *TINY, "train.max_steps=4"]
    assert launch_main(["folds", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 3 + 1
    for line in lines:
        run_line(line)
    printed = capsys.readouterr().out
    assert "mean over folds" in printed
    found = read(tmp_path / "folds-test" / "folds.json")
    sizes = [one["num_samples"] for one in found["folds"]]
    assert found["pooled"]["num_samples"] == sum(sizes)
    manifest = read(tmp_path / "fold-1" / "shards" / "manifest.json")
    assert sum(sizes) == sum(split["num_samples"] for split in manifest["splits"].values())
    assert found["over_folds"]["accuracy"]["deviation"] is not None
    # A second experiment on the same folds, compared with the first.
    for line in lines[3:6]:
        run_line(line.replace("/run ", "/text ") + " model.fusion.name=text_only")
    runs = [str(tmp_path / f"fold-{n}" / name) for name in ("run", "text") for n in (1, 2, 3)]
    assert evaluate_main([*runs, "--folds", "--compare", "--out", str(tmp_path / "both")]) == 0
    compared = read(tmp_path / "both" / "comparison.json")
    assert compared["num_samples"] == sum(sizes)
    first = next(one for one in compared["contenders"] if one["runs"] != ["text"])
    assert first["scores"]["accuracy"] == found["pooled"]["scores"]["accuracy"]
    assert "protocol kfold, 3 folds" in capsys.readouterr().out
    # Refused without the second fold.
    rest = [str(tmp_path / f"fold-{number}" / "run") for number in (1, 3)]
    assert evaluate_main([*rest, "--folds"]) == 2
    assert "missing: 2" in capsys.readouterr().err


def test_the_lines_of_the_published_folds(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["folds", "mvsa-single", "RAW", "runs/t", "--config", "c.yaml", "--processes", "2"]
    assert launch_main([*base, "--protocol", "tib10", "--", "optim.text_lr=3e-5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[9] == (
        "python -m shards pack mvsa-single RAW runs/t/fold-10/shards --protocol tib10:10"
    )
    assert lines[10] == (
        "accelerate launch --config_file accelerate_config.yaml --num_processes 2 train.py "
        "--config c.yaml data.shards=runs/t/fold-1/shards run.dir=runs/t/fold-1/run "
        "optim.text_lr=3e-5"
    )
    assert lines[20].startswith("accelerate launch ")
    assert lines[20].endswith(
        "evaluate.py " + " ".join(f"runs/t/fold-{n}/run" for n in range(1, 11)) + " --folds"
    )
    assert launch_main([*base, "--protocol", "tib10", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 + 20 + 1
    assert lines[11].endswith("run.dir=runs/t/fold-1/run-1 run.seed=1")
    assert lines[30].endswith("runs/t/fold-10/run-1 --folds --ensemble")
    for wrong in ("clean", "kfold:2", "kfold:x", "kfold:0"):
        assert launch_main([*base, "--protocol", wrong]) == 2
