"""`launch study`: its file, the state of its runs, and what it says of made-up scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from launch import checks
from launch.__main__ import main as launch_main
from launch.site import ROOT
from launch.study.answer import answer, corrected_interval
from launch.study.command import _check_settings
from launch.study.page import render, verdicts
from launch.study.question import Study, flat, load_study
from launch.study.searching import check_search
from launch.study.table import print_study
from launch.study.trials import Trial, trials_of
from mmsa.errors import UserError
from tests.evaluation.test_comparison import make_report

BASE = {"model": {"text_encoder": {"name": "x"}}}


def study_of(**changes: Any) -> Study:
    content = {"base": BASE, "variants": {"a": [], "b": ["optim.text_lr=1e-3"]}, **changes}
    return Study.model_validate(content)


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("variants: {}", "variants: "),
        ("variants: {a: []}\nseeds: [1, 1]", "name one of them twice"),
        ("variants: {a: []}\nbaseline: b", "the baseline is b, which is no variant (a)"),
        ("variants: {a: [run.seed=3]}", "run.seed=3 cannot be set: the seeds are `seeds`"),
        ("variants: {a/b: []}", "its name is a directory's"),
        ("variants: {a: [text_only]}", "expected section.key=value"),
        (
            "variants: {a: []}\nseads: [1]",
            "unknown key seads; did you mean seeds? known here: question, base, settings, ",
        ),
        (
            "variants: {a: []}\nfolds: {sorce: mvsa-single}",
            "unknown key folds.sorce; did you mean folds.source? known here: source, raw, ",
        ),
        (
            "search: {trials: 3, space: {a.b: {flot: [0, 1]}}, sampler: {name: tpe, startup: 1}}",
            "unknown key search.space.a.b.flot; did you mean search.space.a.b.float? known here: ",
        ),
        (
            "search: {trials: 3, space: {a.b: {float: [0,1]}}, pruner: {name: asha, reduction: 1}}",
            "unknown key search.pruner.reduction; did you mean search.pruner.reduction_factor?",
        ),
        ("variants: {a: []}\nbase: nowhere.yaml", "base nowhere.yaml does not exist"),
        ("variants: [", "is not YAML"),
        ("- a", "has no keys"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(write(tmp_path / "study.yaml", text))
    assert says in str(caught.value)


def test_the_raw_data_of_a_file_for_all(tmp_path: Path) -> None:
    text = "variants: {a: []}\nfolds: {source: synthetic, protocol: 'kfold:3'}"
    file = write(tmp_path / "study.yaml", text)
    with pytest.raises(UserError, match="folds of synthetic and does not say where .*--raw DIR"):
        load_study(file)
    study = load_study(file, raw="here")
    assert study.folds is not None
    assert study.folds.raw == "here"
    without = write(tmp_path / "other.yaml", "variants: {a: []}")
    with pytest.raises(UserError, match="--raw here: .* has no folds to pack"):
        load_study(without, raw="here")


def test_a_dry_run_shows_how_folds_are_packed_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    words = ["study", "launch/studies/best.yaml", "--raw", str(tmp_path), "--out", str(out)]
    assert launch_main([*words, "--dry-run", "train.epochs=1"]) == 0  # also without --
    lines = capsys.readouterr().out.splitlines()
    packed = [line for line in lines if " -m shards pack mvsa-single " in line]
    assert len(packed) == 5
    assert packed[1].endswith(f"{out}/shards/fold-2 --protocol kfold:2/5")
    trained = [line for line in lines if "train.py" in line]
    assert len(trained) == 2 * 3 * 5
    assert all(" train.epochs=1 " in line for line in trained)
    out.mkdir()
    (out / "config.yaml").touch()
    assert launch_main([*words, "--dry-run"]) == 2
    assert "is the directory of a run" in capsys.readouterr().err


def test_settings_of_other_variants_and_of_the_command_line(tmp_path: Path) -> None:
    text = "settings: [run.audit=true]\n"
    text += "variants: {a: &a [train.epochs=2], b: [*a, optim.text_lr=1e-3]}"
    study = load_study(write(tmp_path / "study.yaml", text), ["data.shards=x"])
    assert flat(study.variants["b"]) == ["train.epochs=2", "optim.text_lr=1e-3"]
    assert study.settings == ["run.audit=true", "data.shards=x"]
    assert study.compared_with == "a"
    trial = trials_of(study, tmp_path / "out")[1]
    assert trial.overrides(study) == [
        *["run.audit=true", "data.shards=x", "train.epochs=2", "optim.text_lr=1e-3"],
        *[f"run.dir={tmp_path / 'out/runs/b/seed-0'}", "run.seed=0"],
    ]


def test_every_variant_of_a_fold_comes_before_the_next_fold(tmp_path: Path) -> None:
    folds = {"source": "synthetic", "raw": "raw", "protocol": "kfold:3"}
    study = study_of(seeds=[0, 1], folds=folds)
    names = [trial.name for trial in trials_of(study, tmp_path)]
    assert names[:4] == ["a/seed-0-fold-1", "b/seed-0-fold-1", "a/seed-0-fold-2", "b/seed-0-fold-2"]
    assert len(set(names)) == 12


def test_the_state_of_a_run(tmp_path: Path) -> None:
    study = study_of()
    trial = trials_of(study, tmp_path)[0]
    trial.log.parent.mkdir(parents=True)
    digest = study.digest_of("a")
    assert trial.state(digest) == "waiting"
    lock = trial.lock()
    assert lock is not None
    assert trial.lock() is None
    assert trial.state(digest) == "running"
    lock.release()
    for _ in range(2):
        trial.attempts.note(part="train", code=1, why="killed", digest=digest)
    assert trial.state(digest) == "waiting"  # it is tried again
    trial.attempts.note(part="train", code=1, why="killed", digest=digest)
    assert trial.state(digest) == "failed"
    assert trial.state("other settings") == "waiting"
    refused = trials_of(study, tmp_path)[1]
    refused.log.parent.mkdir(parents=True)
    refused.attempts.note(part="train", code=2, why="no such shards", digest="d")
    assert refused.state("d") == "failed"  # at once: the same command is refused again
    scored(trial, 0.5)
    assert trial.state(digest) == "done"
    assert trial.was_trained_otherwise("other settings")


def scored(trial: Trial, score: float, *, split: str = "val", metric: str = "weighted_f1") -> None:
    """As if the run had been evaluated."""
    directory = trial.report(split)
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "identity": {"label_names": ["negative", "neutral", "positive"]},
        "scores": {metric: {"value": score, "low": None, "high": None}},
    }
    (directory / "metrics.json").write_text(json.dumps(content))


def test_the_interval_over_folds_is_corrected_for_shared_training_samples() -> None:
    differences = [0.02, 0.05, 0.03, 0.04, 0.01]
    plain = stats.ttest_1samp(differences, 0)
    uncorrected = corrected_interval(differences, 0.0)
    assert uncorrected["p"] == pytest.approx(plain.pvalue)
    low, high = plain.confidence_interval()
    assert (uncorrected["low"], uncorrected["high"]) == pytest.approx((low, high))
    corrected = corrected_interval(differences, 0.25)
    assert corrected["high"] is not None
    # sqrt((1/5 + 1/4) / (1/5)) = 1.5 times as wide.
    assert corrected["high"] - 0.03 == pytest.approx(1.5 * (high - 0.03))
    assert corrected_interval([0.1], 0.25) == {"low": None, "high": None, "p": None}
    assert corrected_interval([0.1, 0.1], 0.25)["p"] == 0


def test_of_a_loss_the_smaller_is_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = {"source": "synthetic", "raw": "raw", "protocol": "kfold:3"}
    study = study_of(
        variants={"text": [], "both": [], "late": []}, folds=folds, metric="loss", question="Why?"
    )
    monkeypatch.setattr("launch.study.answer._validation_over_train", lambda _: 0.25)
    trials = trials_of(study, tmp_path)
    values = {"text": (0.70, 0.69, 0.71), "both": (0.60, 0.59, 0.612), "late": (0.80, 0.79, 0.812)}
    for trial in trials:
        assert trial.fold is not None
        scored(trial, values[trial.variant][trial.fold - 1], metric="loss")
    found = answer(study, trials)
    assert found["best"] == "both"
    said = [sentence.partition(" (")[0] for sentence in verdicts(found)]
    assert said == ["both is ahead of text", "late is behind text"]


def test_two_variants_that_come_to_the_same_weights_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU for a setting without effect, or a trial with the settings of the default."""
    study = study_of(variants={"plain": [], "same": []}, metric="weighted_f1")
    trials = trials_of(study, tmp_path)
    for trial in trials:
        scored(trial, 0.5)
    monkeypatch.setattr(
        "launch.study.answer.read_report",
        lambda directory, name: make_report(name, 0.7, weights_sha256="the same"),
    )
    found = answer(study, trials)
    (difference,) = found["differences"]
    assert (difference["value"], difference["p"], difference["is_significant"]) == (0, 1, False)
    assert verdicts(found)[0].startswith("same and plain are not distinguishable")
    assert "not distinguishable" in render(found, None, {"plain": [], "same": []}, "x").decode()


def test_the_answer_over_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = {"source": "synthetic", "raw": "raw", "protocol": "kfold:4"}
    study = study_of(variants={"text": [], "both": [], "late": []}, folds=folds, question="Why?")
    monkeypatch.setattr("launch.study.answer._validation_over_train", lambda _: 0.25)
    trials = trials_of(study, tmp_path)
    values = {"text": (0.70, 0.69, 0.71, 0.70), "both": (0.73, 0.725, 0.74, 0.735)}
    for trial in trials:
        assert trial.fold is not None
        if trial.variant in values:
            scored(trial, values[trial.variant][trial.fold - 1])
    found = answer(study, trials)
    assert found["num_done"] == 8
    assert [one["name"] for one in found["variants"]] == ["both", "text", "late"]
    assert found["best"] == "both"
    (difference,) = found["differences"]
    assert difference["variant"] == "both"
    assert difference["value"] == pytest.approx(0.0325)
    assert difference["low"] > 0
    assert difference["is_significant"]
    assert verdicts(found)[0].startswith("both is ahead of text (+0.0325 [+0.02")
    print_study(study, trials, found)
    told = capsys.readouterr().out
    assert "weighted_f1 on validation, 8 of 12 runs" in told
    assert "0.7325" in told
    page = render(found, None, {name: [] for name in study.variants}, "folds").decode()
    assert "<h1>Why?</h1>" in page
    assert "8 of 12 runs are done" in page
    assert page.count("<svg") == 2


def test_a_score_that_is_no_number_leaves_its_variant_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(folds={"source": "synthetic", "raw": "raw", "protocol": "kfold:3"})
    monkeypatch.setattr("launch.study.answer._validation_over_train", lambda _: 0.25)
    trials = trials_of(study, tmp_path)
    for trial in trials:
        scored(trial, math.nan if trial.variant == "b" else 0.5)
    found = answer(study, trials)
    assert [one["is_whole"] for one in found["variants"]] == [True, False]
    assert found["best"] is None


STUDIES = sorted((ROOT / "launch" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_studies_that_come_with_the_project_can_be_trained(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    has_folds = "folds:" in file.read_text()
    study = load_study(file, [] if has_folds else ["data.shards=x"], "raw" if has_folds else None)
    _check_settings(study, trials_of(study, tmp_path))
    assert study.question
    if study.search is None:
        assert len(study.variants) >= 2
    else:
        check_search(study, str(study.base))


def test_a_variant_that_no_run_could_take_is_refused_at_once(tmp_path: Path) -> None:
    study = study_of(
        settings=["data.shards=x"],
        variants={"a": ["train.epoch=2"], "b": ["train.epoch=2"], "c": []},
    )
    with pytest.raises(UserError, match=r"a, b: .*unknown key train.epoch; did you mean"):
        _check_settings(study, trials_of(study, tmp_path))


def test_an_array_of_drivers_as_it_would_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM here
    monkeypatch.setattr(checks, "missing_for_jobs", lambda *_: [])  # looks into caches for minutes
    words = ["study", "launch/studies/demo.yaml", "--out", str(tmp_path / "out"), "--dry-run"]
    words += ["--slurm", "--parallel", "8", "--at-once", "2", "--engine", "zero2"]
    rest = ["--", "data.shards=x"]
    assert launch_main([*words, "--gpus-per-node", "4", *rest]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=1-8%2\n" in script
    assert "#SBATCH --gpus-per-node=4\n" in script
    assert f"set -- launch/studies/demo.yaml --out {tmp_path / 'out'} -- data.shards=x\n" in script
    assert "\nENGINE=zero2" in script
    assert not (tmp_path / "out").exists()
    folds = ["study", "launch/studies/best.yaml", "--out", str(tmp_path / "b"), *words[4:]]
    assert launch_main([*folds, "--raw", str(tmp_path)]) == 0
    assert f" --out {tmp_path / 'b'} --raw {tmp_path}\n" in capsys.readouterr().out
    assert launch_main([*folds, "--raw", str(tmp_path / "nowhere")]) == 2
    assert "the raw data" in capsys.readouterr().err
    assert launch_main([*words, "--nodes", "2", *rest]) == 2
    assert "--nodes 2: each task of a study trains on one node" in capsys.readouterr().err
