"""`evaluate.py --ensemble` and `python -m mmsa soup`: several runs as one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import TINY
from safetensors.torch import load_file

from evaluate import main as evaluate_main
from mmsa.__main__ import main as mmsa_main
from mmsa.evaluation.inputs.ledger import read_ledger
from shards.__main__ import main as shards_main
from train import main as train_main

Captured = pytest.CaptureFixture[str]
QUICK = ["--no-floors", "--no-page"]


@pytest.fixture(scope="module")
def source(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("several") / "source"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=4"]
    assert train_main(settings) == 0
    return run_dir


@pytest.fixture(scope="module")
def runs(source: Path, shards: Path) -> list[Path]:
    """Three runs that began from the same weights, as for a soup, with different seeds."""
    found = []
    for seed in range(3):
        found.append(source.parent / f"run-{seed}")
        settings = [*TINY, f"data.shards={shards}", f"train.init_from={source}", f"run.seed={seed}"]
        settings += [f"run.dir={found[-1]}", "train.max_steps=4", "model.fusion.dropout=0.2"]
        assert train_main(settings) == 0
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def probabilities(report: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Keys and softmax of the stored logits (N, C)."""
    rows = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
    logits = np.array([row["logits"] for row in rows], dtype=np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return [row["key"] for row in rows], powers / powers.sum(axis=1, keepdims=True)


def test_an_ensemble_is_the_mean_of_probabilities_and_a_report_like_others(
    runs: list[Path], tmp_path: Path, capsys: Captured
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    arguments = [str(run) for run in runs]
    assert evaluate_main([*arguments, "--ensemble", "--split", "val", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "ensemble of 3 (run-0, run-1, run-2): the mean of their probabilities" in printed
    assert "note: the best export of each member and the C of TF-IDF were chosen" in printed
    keys, found = probabilities(out)
    of_each = [probabilities(run / "reports" / "val-best") for run in runs]
    assert all(own == keys for own, _ in of_each)
    np.testing.assert_allclose(found, np.mean([probs for _, probs in of_each], 0), atol=1e-6)
    metrics = read(out / "metrics.json")
    assert [one["name"] for one in metrics["members"]] == ["run-0", "run-1", "run-2"]
    assert metrics["identity"]["step"] is None
    assert len(metrics["identity"]["ensemble"]) == 3
    assert "no temperature" in (out / "report.txt").read_text()
    made_of = "probabilities: the mean of 3 models (run-0, run-1, run-2)"
    assert made_of in (out / "report.txt").read_text()
    assert made_of in (out / "report.html").read_text()
    # In any order of the members: the same bytes of predictions, and the same identity.
    back = [*reversed(arguments), "--ensemble", "--split", "val", "--out", str(again), *QUICK]
    assert evaluate_main(back) == 0
    assert read(again / "metrics.json")["identity"] == metrics["identity"]
    name = "predictions.jsonl"
    assert (again / name).read_bytes() == (out / name).read_bytes()


def test_an_ensemble_is_compared_with_its_members(
    runs: list[Path], tmp_path: Path, capsys: Captured
) -> None:
    arguments = [str(run) for run in runs]
    out = ["--out", str(tmp_path), *QUICK]
    assert evaluate_main([*arguments, "--ensemble", "--compare", *out]) == 0
    found = read(tmp_path / "comparison.json")
    assert sorted(len(one["runs"]) for one in found["contenders"]) == [1, 3]  # three seeds
    assert len(found["pairs"]) == 1
    (home,) = runs[0].parent.glob("ensemble-*")
    assert sorted(path.name for path in home.iterdir()) == ["test"]
    # Its report can be compared on its own, and opens nothing.
    before = [read_ledger(run).num_openings for run in runs]
    capsys.readouterr()
    assert evaluate_main([str(home / "test"), str(runs[0]), "--compare", *out]) == 0
    assert len(read(tmp_path / "comparison.json")["contenders"]) == 2
    assert [read_ledger(run).num_openings for run in runs[1:]] == before[1:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}", "{0}", "--ensemble"], "are the same weights; name each once"),
        (["{0}", "--ensemble"], "need several targets; one was given"),
        (["{0}", "{1}", "--ensemble", "--modality-audit"], "--modality-audit is for one model"),
        (["{0}", "{1}", "--ensemble", "--split", "val", "--calibrate"], "--calibrate is for one"),
        (["{0}", "{classes}", "--ensemble"], "cannot be joined: the class order of one is"),
        (["{0}", "{shards}", "--ensemble"], "cannot be joined: the protocol of one is"),
        (["{0}", "{1}", "--ensemble", "--folds"], "the protocol 'clean', which has no folds"),
    ],
)
def test_what_cannot_be_an_ensemble_opens_nothing(
    runs: list[Path],
    others: dict[str, str],
    capsys: Captured,
    arguments: list[str],
    words: str,
) -> None:
    before = read_ledger(runs[0]).num_openings
    assert evaluate_main([part.format(*runs, **others) for part in arguments]) == 2
    assert words in capsys.readouterr().err
    assert read_ledger(runs[0]).num_openings == before


def test_members_may_differ_in_what_may_be_missing_where_nothing_is(
    runs: list[Path], others: dict[str, str], tmp_path: Path, capsys: Captured
) -> None:
    words = [str(runs[0]), others["masked"], "--ensemble", "--split", "val", *QUICK]
    assert evaluate_main([*words, "--out", str(tmp_path / "out")]) == 0
    assert len(read(tmp_path / "out" / "metrics.json")["members"]) == 2


@pytest.fixture(scope="module")
def others(shards: Path, source: Path) -> dict[str, str]:
    """Runs of other classes, other shards, another architecture, and with a stand-in for images."""
    folder, raw = source.parent, str(shards.parent / "raw")
    packing = ["--image-short-side", "64", "--protocol", "random", "--quiet"]
    assert shards_main(["pack", "mvsa-single", raw, str(folder / "random"), *packing]) == 0
    found = {}
    for name, settings in (
        ("classes", ["data.classes=[negative, positive]"]),
        ("shards", [f"data.shards={folder / 'random'}"]),
        ("wider", ["model.fusion.hidden=[24]"]),
        ("masked", ["data.modality_dropout.image=0.2"]),
    ):
        run = [*TINY, f"data.shards={shards}", f"run.dir={folder / name}", "train.max_steps=1"]
        assert train_main([*run, *settings]) == 0
        found[name] = str(folder / name)
    return found


def test_a_soup_is_an_export_that_says_its_ingredients(
    runs: list[Path], tmp_path: Path, capsys: Captured
) -> None:
    soups = {}
    for kind in ("greedy", "uniform"):
        soups[kind] = tmp_path / kind
        words = ["soup", *map(str, runs), "--output", str(soups[kind]), "--kind", kind]
        assert mmsa_main(words) == 0
        printed = capsys.readouterr().out
        assert "BatchNorm statistics: computed again on 160 training samples" in printed
        assert mmsa_main(["verify", str(soups[kind])]) == 0
    facts = {kind: read(soups[kind] / "export.json")["soup"] for kind in soups}
    assert (facts["greedy"]["validations"], facts["uniform"]["validations"]) == (5, 0)
    states = {run.name: load_file(run / "best" / "model.safetensors") for run in runs}
    for kind, soup in facts.items():
        inside = [states[one["name"]] for one in soup["ingredients"]]
        assert len(inside) + len(soup["left_out"]) == 3
        mixed = load_file(soups[kind] / "model.safetensors")
        for name, tensor in mixed.items():
            if "running_" in name or "num_batches" in name:
                continue
            expected = torch.stack([state[name].double() for state in inside]).mean(0)
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    assert facts["uniform"]["left_out"] == []
    best = max(one["score"] for one in facts["greedy"]["ingredients"])
    assert facts["greedy"]["score"] >= best
    # Its score on validation is the one that evaluate.py finds.
    capsys.readouterr()
    assert evaluate_main([str(soups["uniform"]), "--split", "val", *QUICK]) == 0
    assert "weights: uniform soup of 3 (" in capsys.readouterr().out
    metrics = read(soups["uniform"] / "reports" / "val-export" / "metrics.json")
    assert metrics["weighted"]["f1"] == pytest.approx(facts["uniform"]["score"], abs=1e-6)
    assert metrics["soup"]["ingredients"] == facts["uniform"]["ingredients"]
    # A soup is not a seed of its ingredients, and a run can begin from it.
    arguments = [str(soups["uniform"]), str(runs[0]), "--split", "val", "--compare", *QUICK]
    assert evaluate_main([*arguments, "--out", str(tmp_path / "compared")]) == 0
    assert len(read(tmp_path / "compared" / "comparison.json")["contenders"]) == 2
    (entry,) = read(soups["uniform"] / "export.json")["history"]
    assert entry["init_from"].endswith("source")


def test_the_statistics_of_a_soup_are_those_of_its_own_activations(
    runs: list[Path], shards: Path, tmp_path: Path
) -> None:
    """The first BatchNorm sees the mean of convolutions: its statistics can be computed by hand."""
    from mmsa.data.batch_requests import EvaluationRequests
    from mmsa.data.manifest import load_manifest
    from mmsa.data.reader import SplitReader
    from mmsa.data.stream import Loader
    from mmsa.export import load_model, read_export

    soup = tmp_path / "soup"
    words = ["soup", *map(str, runs[:2]), "--output", str(soup), "--kind", "uniform"]
    assert mmsa_main(words) == 0
    export = read_export(soup)
    model = load_model(export)
    reader = SplitReader(
        str(shards), load_manifest(shards), "train", export.class_map(export.label_names)
    )
    requests = EvaluationRequests(reader, len(reader), 1, 0)
    batches = Loader(requests, export.preprocessing, None, 0)
    assert model.image_encoder is not None
    layers = [
        (name, module)
        for name, module in model.image_encoder.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    first = layers[0][1]
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model.image_encoder(batch["images"])
    (activations,) = seen  # (N, D, h, w)
    assert first.running_mean is not None
    mean, deviation = activations.mean((0, 2, 3)), activations.std((0, 2, 3))
    # The soup takes whole batches: 160 of the 173 samples.
    assert ((first.running_mean - mean).abs() < 0.05 * deviation).all()


def test_a_head_with_batch_norm_is_mixed_where_evaluation_takes_single_samples(
    shards: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The statistics of its BatchNorm need batches of two."""
    runs = [str(tmp_path / f"run-{seed}") for seed in range(2)]
    for seed, run in enumerate(runs):
        settings = ["model.fusion.name=text_only", "model.fusion.batch_norm=true"]
        settings += ["model.fusion.hidden=[4]", "eval.batch_size=1", "train.max_steps=1"]
        settings += [f"data.shards={shards}", f"run.dir={run}", f"run.seed={seed}"]
        assert train_main([*TINY, *settings]) == 0
    capsys.readouterr()
    assert mmsa_main(["soup", *runs, "--kind", "uniform"]) == 0
    said = "BatchNorm statistics: computed again on 172 training samples"  # of 173
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}"], "a soup needs two runs or exports or more"),
        (["{0}", "{0}"], "are the same weights; name each once"),
        (["{0}", "{classes}"], "cannot be mixed: the classes of one are negative, neutral"),
        (["{0}", "{shards}"], "cannot be mixed: they were trained on different shards"),
        (["{0}", "{wider}"], "cannot be mixed: 3 of "),
        (["{0}", "{masked}"], "have stand-ins for other missing modalities (none; image)"),
        (["{0}", "{1}", "--metric", "f1"], "--metric: unknown metric 'f1'"),
        (["{0}", "{1}", "--output", "{0}"], "exists already; give a new directory with --output"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_sentence(
    runs: list[Path], others: dict[str, str], capsys: Captured, arguments: list[str], words: str
) -> None:
    assert mmsa_main(["soup", *(part.format(*runs, **others) for part in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert not (runs[0].parent / "soup").exists()


def test_folds_take_ensembles(shards: Path, tmp_path: Path, capsys: Captured) -> None:
    """Two seeds of each of three folds: an ensemble for each fold, then all folds as one result."""
    raw, runs = str(shards.parent / "raw"), []
    for fold in (1, 2, 3):
        packed = tmp_path / f"fold-{fold}" / "shards"
        packing = ["--image-short-side", "64", "--protocol", f"kfold:{fold}/3", "--quiet"]
        assert shards_main(["pack", "mvsa-single", raw, str(packed), *packing]) == 0
        for seed in (0, 1):
            runs.append(tmp_path / f"fold-{fold}" / f"run-{seed}")
            settings = [*TINY, f"data.shards={packed}", f"run.dir={runs[-1]}", f"run.seed={seed}"]
            assert train_main([*settings, "train.max_steps=1"]) == 0
            shutil.rmtree(runs[-1] / "checkpoints")
    arguments = [*map(str, runs), "--ensemble", "--folds", *QUICK]
    assert evaluate_main([*arguments[1:]]) == 2  # one seed less in the first fold
    assert "are not folds of one experiment: their configuration differs" in capsys.readouterr().err
    assert evaluate_main(arguments) == 0
    found = read(tmp_path / "folds-test" / "folds.json")
    assert [one["fold"] for one in found["folds"]] == [1, 2, 3]
    assert len(list(tmp_path.glob("fold-*/ensemble-*/test/metrics.json"))) == 3
