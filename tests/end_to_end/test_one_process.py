"""Pack, train, resume, evaluate and predict through the commands' own `main([...])`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from harness import TINY, metric_lines, status
from safetensors.torch import load_file

import mmsa
from evaluate import main as evaluate_main
from mmsa.data.manifest import load_manifest
from train import main as train_main


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, trained to its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert train_main([*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=2"]) == 0
    return run_dir


def test_a_run_leaves_what_it_promises(finished: Path, shards: Path) -> None:
    told = status(finished)
    expected = {"state": "done", "reason": "", "step": 20, "exit_code": 0, "num_steps": 20}
    assert expected.items() <= told.items()
    assert (told["restarts"], told["pid"], told["validation"]["step"]) == (0, os.getpid(), 20)
    losses = [line["loss"] for line in metric_lines(finished, "train")]
    assert len(losses) == 20  # 174 // 16 = 10 steps an epoch, each logged
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    validations = metric_lines(finished, "validation")
    assert [line["step"] for line in validations] == [10, 20]
    assert {"loss", "accuracy", "macro_f1", "weighted_f1", "precision/neutral", "recall/positive",
            "f1/negative"} <= validations[0].keys()  # fmt: skip
    assert (finished / "best").is_symlink()
    assert not (finished / "best").readlink().is_absolute()
    assert sorted(p.name for p in (finished / "best").iterdir()) == [
        *["calibration.json", "config.yaml", "digests.json", "export.json", "labels.json"],
        *["model.safetensors", "preprocessing.json", "tokenizer"],
    ]
    assert list((finished / "tensorboard").iterdir())
    assert list(finished.rglob("*.tmp")) == []
    log = (finished / "log.txt").read_text()
    assert "engine single, world_size 1, backend none" in log
    assert "global batch 16 = micro-batch 4 x accumulation 4 x world 1" in log
    assert load_manifest(shards).digest[:12] in log
    assert "weights of the text encoder: fresh (seeded)" in log


def test_a_finished_run_says_so(
    finished: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    code = train_main([*TINY, f"data.shards={shards}", f"run.dir={finished}", "train.epochs=2"])
    assert code == 0
    assert "is finished" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_the_learning_rate_is_the_schedule_of_the_step(finished: Path) -> None:
    rates = [line["lr_text"] for line in metric_lines(finished, "train")]
    assert rates[:2] == pytest.approx([1e-3 / 3, 2e-3 / 3])  # warm-up is a tenth of 20 steps
    assert rates[2] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(0.5e-3 * (1 + np.cos(np.pi * 17 / 18)))


@pytest.mark.parametrize("stop_after", [7, 10])  # inside the first epoch, and at its end
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    settings = [*TINY, f"data.shards={shards}", "train.epochs=2", "train.checkpoint_every_steps=1"]
    settings += ["train.validate_every_steps=5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_main([*settings, f"run.dir={whole}"]) == 0

    import train

    real = train.seed_step

    def interrupt(seed: int, step: int, rank: int) -> None:
        if step == stop_after:
            raise KeyboardInterrupt
        real(seed, step, rank)

    monkeypatch.setattr(train, "seed_step", interrupt)
    assert train_main([*settings, f"run.dir={parts}"]) == 130
    assert status(parts)["state"] == "failed"
    monkeypatch.setattr(train, "seed_step", real)
    # The shards are at another place since, and the run is reached by another path.
    (tmp_path / "moved").symlink_to(shards)
    (tmp_path / "link").symlink_to(parts)
    settings = [*settings, f"data.shards={tmp_path / 'moved'}", f"run.dir={tmp_path / 'link'}"]
    assert train_main(settings) == 0
    assert f"at step {stop_after}" in (parts / "log.txt").read_text()
    for name in ("checkpoints/step-00000020/export/model.safetensors", "best/model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    same = ("step", "loss", "lr_text", "grad_norm")
    for kind in ("train", "validation"):
        assert [[line.get(key) for key in same] for line in metric_lines(whole, kind)] == [
            [line.get(key) for key in same] for line in metric_lines(parts, kind)
        ]


def test_evaluation_and_prediction_agree(
    finished: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prediction on the raw files gives the probabilities of the evaluation on the packed ones."""
    out = tmp_path / "report"
    assert evaluate_main([str(finished), "--split", "val", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "weighted avg" in told
    assert re.search(r"start: \d+\.\d s to the first batch \(imports .*first batch \d", told)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(rows) == metrics["num_samples"] == load_manifest(shards).split("val").num_samples
    assert np.array(metrics["confusion_matrix"]).sum() == len(rows)

    raw = shards.parent / "raw" / "data"
    ids = [row["key"].removeprefix("mvsa-single-") for row in rows]
    texts = [(raw / f"{i}.txt").read_bytes().decode("gb18030") for i in ids]
    result = mmsa.load(finished, device="cpu").predict(texts, [raw / f"{i}.jpg" for i in ids])
    expected = [[row["probabilities"][name] for name in result.label_names] for row in rows]
    np.testing.assert_allclose(result.probabilities, expected, atol=2e-6)
    assert result.labels == [row["predicted"] for row in rows]


def test_the_ledger_counts_openings_of_the_test_split(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for expected in (1, 2):
        assert evaluate_main([str(finished)]) == 0
        assert f"opened {expected} time(s)" in capsys.readouterr().out
    assert evaluate_main([str(finished), "--split", "val"]) == 0
    assert len((finished / "test_ledger.jsonl").read_text().splitlines()) == 2


def test_best_last_and_a_step_are_found(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, checkpoint, name in (
        (finished, "last", "val-step-00000020"),
        (finished, "10", "val-step-00000010"),
        (finished / "checkpoints" / "step-00000020", "best", "val-step-00000020"),
        (finished / "best", "best", "val-best"),
    ):
        code = evaluate_main([str(target), "--checkpoint", checkpoint, "--split", "val"])
        assert code == 0, capsys.readouterr().err
        assert (finished / "reports" / name / "metrics.json").is_file()


def test_training_never_reads_the_test_split(shards: Path, tmp_path: Path) -> None:
    """A data set can be used for training without its test shards."""
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        if not path.name.startswith("test-"):
            (copy / path.name).write_bytes(path.read_bytes())
    settings = [*TINY, f"data.shards={copy}", f"run.dir={tmp_path / 'run'}", "train.max_steps=2"]
    assert train_main(settings) == 0


def test_early_stopping_and_two_classes_with_one_logit(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = [
        *TINY,
        f"data.shards={shards}",
        f"run.dir={run_dir}",
        "data.classes={bad: [negative], good: [positive, neutral]}",
        "model.loss=binary_cross_entropy",
        "model.class_weights=balanced",
        "optim.text_lr=0",
        "optim.image_lr=0",
        "optim.head_lr=0",  # nothing changes, so no validation is better than the first
        "data.drop_last=false",
        "train.epochs=9",
        "train.patience=2",
        "model.image_encoder.train=frozen",
    ]
    assert train_main(settings) == 0
    assert status(run_dir)["reason"] == "no better weighted_f1 in 2 validations"
    steps = [line["step"] for line in metric_lines(run_dir, "validation")]
    assert steps == [11, 22, 33]  # 174 = 10 x 16 + 14, the last step incomplete
    assert evaluate_main([str(run_dir), "--split", "val"]) == 0
    metrics = json.loads((run_dir / "reports" / "val-best" / "metrics.json").read_text())
    assert list(metrics["per_class"]) == ["bad", "good"]
    assert load_file(run_dir / "best" / "model.safetensors")["fusion.classifier.3.bias"].shape == (
        1,
    )


def test_classes_go_by_name_where_shards_list_them_in_another_order(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    """The same data packed with reversed classes gives the same predictions, sample by sample."""
    from mmsa.data.index_file import INDEX_DTYPE, index_bytes, read_index
    from mmsa.data.manifest import write_manifest

    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = load_manifest(shards)
    split = manifest.split("val")
    turned = []
    for shard in split.shards:
        records = read_index(shards, shard).copy()
        records["label"] = 2 - records["label"]
        content = index_bytes(
            records.astype(INDEX_DTYPE), tar_bytes=shard.tar_bytes, tar_sha256=shard.tar_sha256
        )
        (copy / shard.index).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        turned.append(shard.model_copy(update={"index_sha256": sha256}))
    splits = manifest.splits | {"val": split.model_copy(update={"shards": tuple(turned)})}
    classes = tuple(reversed(manifest.classes))
    write_manifest(copy, manifest.model_copy(update={"classes": classes, "splits": splits}))
    outs = [tmp_path / "as_trained", tmp_path / "reversed"]
    for data, out in zip((shards, copy), outs, strict=True):
        arguments = [str(finished), "--shards", str(data), "--split", "val", "--out", str(out)]
        assert evaluate_main(arguments) == 0
    predictions = [(out / "predictions.jsonl").read_bytes() for out in outs]
    assert predictions[0] == predictions[1]
