"""Texts without images and images without texts, from a user's table to a prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from harness import TINY, status

import mmsa
from evaluate import main as evaluate_main
from launch.checks import check_start
from mmsa.config import load_config
from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError
from mmsa.training.missing_modalities import settle_stand_ins
from shards.__main__ import main as shards_main
from tests.shards.raw import jpeg
from train import main as train_main

LABELS = ("negative", "neutral", "positive")
SHORT = ["train.max_steps=4", "train.validate_every_steps=2", "train.checkpoint_every_steps=2"]


def packed(folder: Path, *options: str, lacks: tuple[str, ...] = ("", "image", "text")) -> Path:
    """A packed table of 90 rows; row n lacks what `lacks` says in turn."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(90):
        what = lacks[number // 3 % len(lacks)]
        image = "" if what == "image" else f"{number}.jpg"
        if image:
            (folder / image).write_bytes(jpeg(number))
        text = "" if what == "text" else f"word{number % 7} word{number} of the table"
        rows.append({"text": text, "image": image, "label": LABELS[number % 3]})
    with (folder / "tweets.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image", "label"])
        writer.writeheader()
        writer.writerows(rows)
    out = folder / "shards"
    arguments = ["pack", "table", str(folder / "tweets.csv"), str(out), "--quiet", *options]
    assert (
        shards_main([*arguments, "--ratios", "4:1:1", "--protocol", "random", "--workers", "1"])
        == 0
    )
    return out


def train(shards: Path, run_dir: Path, *settings: str) -> int:
    return train_main([*TINY, *SHORT, f"data.shards={shards}", f"run.dir={run_dir}", *settings])


def test_a_set_with_missing_modalities_trains_resumes_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = packed(tmp_path / "raw", "--keep-missing", "text,image")
    settings = ["data.modality_dropout={text: 0.2, image: 0.2}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(shards, whole, *settings) == 0

    import train as loop

    real = loop.seed_step

    def interrupt(seed: int, step: int, rank: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        real(seed, step, rank)

    monkeypatch.setattr(loop, "seed_step", interrupt)
    assert train(shards, parts, *settings) == 130
    monkeypatch.setattr(loop, "seed_step", real)
    assert train(shards, parts, *settings) == 0
    name = "checkpoints/step-00000004/export/model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert "stand_ins:" in (whole / "best" / "config.yaml").read_text()
    assert "stand_ins:" not in (whole / "config.yaml").read_text()  # the run's own says auto
    assert "without image: " in (whole / "log.txt").read_text()

    capsys.readouterr()
    command = [str(whole), "--split", "test", "--modality-audit", "--no-floors"]
    assert evaluate_main(command) == 0
    (report,) = (whole / "reports").iterdir()
    slices = json.loads((report / "metrics.json").read_text())["slices"]
    counts = {name: one["num_samples"] for name, one in slices.items()}
    missing = load_manifest(shards).splits["test"].missing
    assert (counts["text only"], counts["image only"]) == (missing["image"], missing["text"])
    total = load_manifest(shards).split("test").num_samples
    assert counts["has both text and image"] == total - sum(missing.values())
    audited = json.loads((report / "modality_audit.json").read_text())
    assert audited["missing"] == missing
    assert "samples have no image: no change of it reaches them" in capsys.readouterr().out

    predictor = mmsa.load(whole, device="cpu")
    image = jpeg(5)
    both = predictor.predict(["word1", None, "word1"], [image, image, None]).probabilities
    assert len({tuple(row) for row in both.tolist()}) == 3
    np.testing.assert_allclose(predictor.predict(["word1"]).probabilities, both[2:], atol=2e-6)
    np.testing.assert_allclose(
        predictor.predict(images=[image]).probabilities, both[1:2], atol=2e-6
    )
    with pytest.raises(UserError, match="row 1 has neither a text nor an image"):
        predictor.predict(["word1", None], [None, None], on_error="raise")


def test_a_model_that_was_not_trained_for_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = packed(tmp_path / "complete", lacks=("",))
    lacking = packed(tmp_path / "lacking", "--keep-missing", "text,image")
    run_dir = tmp_path / "run"
    assert train(complete, run_dir) == 0
    export = mmsa.load(run_dir, device="cpu")
    assert not any(name.startswith("stand_ins") for name in export._rows.model.state_dict())
    with pytest.raises(
        UserError, match="text 1: it is None, and the model in .* was not trained for"
    ):
        export.predict(["word1", None], [jpeg(1), jpeg(2)], on_error="raise")
    with pytest.raises(UserError, match="give images as a list"):
        export.predict(["word1"])
    capsys.readouterr()
    of_lacking = ["--shards", str(lacking), "--split", "test"]
    assert evaluate_main([str(run_dir), *of_lacking]) == 2
    assert "have no text, and the model in" in capsys.readouterr().err
    masked = tmp_path / "masked"
    assert train(complete, masked, "data.modality_dropout={text: 0.2, image: 0.2}") == 0
    assert evaluate_main([str(masked), str(run_dir), "--ensemble", *of_lacking]) == 2
    assert f"and the model in {run_dir}" in capsys.readouterr().err
    assert not (masked / "reports").exists()  # refused before a member was evaluated


def test_settings_that_the_data_refutes_are_refused(tmp_path: Path) -> None:
    shards = packed(tmp_path / "raw", "--keep-missing", "text,image")
    assert train(shards, tmp_path / "run", "model.stand_ins=[text]") == 2
    said = status(tmp_path / "run")["reason"]
    assert "have no image, and model.stand_ins names none for it" in said
    # A launch says so before it starts its ranks.
    shape = ["launch.engine=ddp", "launch.world_size=1", f"run.dir={tmp_path / 'launched'}"]
    settings = [*TINY, f"data.shards={shards}", *shape]
    with pytest.raises(UserError, match="have no image, and model.stand_ins names none for it"):
        check_start(load_config(None, [*settings, "model.stand_ins=[text]"]))
    assert check_start(load_config(None, settings))[1] is False
    # On a CPU the launch itself refuses it before.
    sync = load_config(None, [f"data.shards={shards}", "model.image_encoder.batch_norm=sync"])
    with pytest.raises(UserError, match="batch_norm=sync needs images on every rank"):
        settle_stand_ins(sync, load_manifest(shards))


def test_auto_gives_stand_ins_to_what_is_missing_or_masked(tmp_path: Path) -> None:
    complete = load_manifest(packed(tmp_path / "complete", lacks=("",)))
    lacking = load_manifest(
        packed(tmp_path / "raw", "--keep-missing", "image", lacks=("", "image"))
    )
    plain, masked = (
        load_config(None, overrides) for overrides in ([], ["data.modality_dropout.text=0.1"])
    )
    text_only = load_config(None, ["model.fusion.name=text_only"])
    assert settle_stand_ins(plain, complete) == plain
    assert settle_stand_ins(masked, complete).model.stand_ins == ("text",)
    assert settle_stand_ins(plain, lacking).model.stand_ins == ("image",)
    assert settle_stand_ins(masked, lacking).model.stand_ins == ("text", "image")
    assert settle_stand_ins(text_only, lacking) == text_only


def test_a_table_of_texts_trains_a_model_of_texts(tmp_path: Path) -> None:
    shards = packed(tmp_path / "raw", "--keep-missing", "image", lacks=("image",))
    refused, run_dir = tmp_path / "refused", tmp_path / "run"
    assert train(shards, refused) == 2
    said = status(refused)["reason"]
    assert "no sample of the training split of" in said
    assert "use model.fusion.name=text_only" in said
    assert train(shards, run_dir, "model.fusion.name=text_only") == 0
    assert evaluate_main([str(run_dir), "--split", "test", "--no-floors"]) == 0
    assert mmsa.load(run_dir, device="cpu").predict(["word1"]).labels[0] in LABELS
