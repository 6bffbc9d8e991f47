"""A run with all that trains a model beyond its loss: it resumes to the byte, exports, evaluates.

Engines other than one process have these settings in `SAME_EVERYWHERE`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import TINY, metric_lines
from PIL import Image
from safetensors.torch import load_file

import mmsa
from evaluate import main as evaluate_main
from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError
from mmsa.export import load_model, read_export
from mmsa.labels import class_map
from mmsa.training.setup import _require_own_labels
from tests.packed import open_split, packed_set
from train import main as train_main

RECIPE = [
    *[*TINY, "model.auxiliary={text: 0.5, image: 0.25}", "optim.layer_decay=0.6", "train.ema=0.7"],
    *["data.auto_augment=trivial_augment", "model.loss=focal", "train.epochs=1"],
    *["train.max_steps=4", "train.checkpoint_every_steps=2", "train.keep_checkpoints=9"],
]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("recipe") / "whole"
    assert train_main([*RECIPE, f"data.shards={shards}", f"run.dir={run_dir}"]) == 0
    return run_dir


def _tensors(run_dir: Path) -> dict[str, bytes]:
    """The bytes of all weights and states of the last step."""
    last = run_dir / "checkpoints" / "step-00000004"
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    files["export"] = (last / "export" / "model.safetensors").read_bytes()
    files["best"] = (run_dir / "best" / "model.safetensors").read_bytes()
    return files


def test_a_resumed_run_ends_with_the_same_bytes(whole: Path, shards: Path, tmp_path: Path) -> None:
    resumed = shutil.copytree(whole, tmp_path / "resumed", symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.rmtree(resumed / "exports")
    (resumed / "best").unlink()
    (resumed / "status.json").unlink()
    assert train_main([*RECIPE, f"data.shards={shards}", f"run.dir={resumed}"]) == 0
    assert "resumed from" in (resumed / "log.txt").read_text()
    found, expected = _tensors(resumed), _tensors(whole)
    assert set(found) == {"best", "export", "live.safetensors", "optimizer.safetensors",
                          "statistics-00000.safetensors"}  # fmt: skip
    assert [name for name in expected if found[name] != expected[name]] == []


def test_exports_have_the_average_and_its_validation(whole: Path, tmp_path: Path) -> None:
    last = whole / "checkpoints" / "step-00000004"
    export, live = (
        load_file(last / name) for name in ("export/model.safetensors", "live.safetensors")
    )
    assert (whole / "best" / "model.safetensors").read_bytes() == (
        last / "export" / "model.safetensors"
    ).read_bytes()
    changed = {name for name in live if not torch.equal(live[name], export[name])}
    assert {"fusion.classifier.0.weight", "auxiliary.text.weight"} <= changed
    assert any(name.endswith("running_mean") for name in changed)
    # What was validated is what is exported.
    assert evaluate_main([str(whole), "--split", "val", "--out", str(tmp_path), "--no-page"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    validated = metric_lines(whole, "validation")[-1]
    assert metrics["weighted"]["f1"] == pytest.approx(validated["weighted_f1"], abs=1e-4)


def test_a_validation_scores_the_heads_on_their_own_labels(whole: Path) -> None:
    validated = metric_lines(whole, "validation")[-1]
    for modality in ("text", "image"):
        for score in ("accuracy", "weighted_f1"):
            assert 0 < validated[f"auxiliary_{modality}_{score}"] <= 1
    log = (whole / "log.txt").read_text()
    assert f"accuracy {validated['auxiliary_text_accuracy']:.4f}" in log
    assert "auxiliary head of the image, on its own label: accuracy" in log


def test_an_export_with_heads_predicts_without_them(whole: Path) -> None:
    model = load_model(read_export(whole / "best"))
    assert sorted(model.auxiliary or ()) == ["image", "text"]
    predicted = mmsa.load(whole / "best").predict(["so good"], [Image.new("RGB", (40, 40))])
    assert len(predicted.labels) == 1


def test_a_set_without_labels_of_the_modalities_is_refused(
    tmp_path: Path,
) -> None:
    reader = open_split(tmp_path, packed_set(tmp_path))
    classes = class_map(load_manifest(tmp_path).classes, None)
    with pytest.raises(UserError) as refused:
        _require_own_labels(["text", "image"], "DATA", reader, classes)
    assert str(refused.value) == (
        "model.auxiliary.text and model.auxiliary.image cannot be used: the samples of DATA that "
        "were looked at have no text_label and image_label of the model's classes. MVSA packed by "
        "mvsa-single or mvsa-multiple has them; for this set use model.auxiliary.text=0 "
        "model.auxiliary.image=0"
    )
