"""`train.init_from`: runs that begin with all weights of another, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import TINY, launched, metric_lines, pack_synthetic, status
from safetensors.torch import load_file

from evaluate import main as evaluate_main
from launch.__main__ import main as launch_main
from mmsa.data.manifest import load_manifest
from mmsa.evaluation.inputs.ledger import record_opening
from train import main as train_main

STEPS = ["train.max_steps=3", "train.checkpoint_every_steps=1"]
STILL = ["optim.text_lr=0", "optim.image_lr=0", "optim.head_lr=0"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    run_dir = tmp_path_factory.mktemp("warm") / "source"
    assert train_main([*TINY, *STEPS, f"data.shards={shards}", f"run.dir={run_dir}"]) == 0
    return run_dir


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    export = run_dir / "checkpoints" / f"step-{step:08d}" / "export"
    return load_file(export / "model.safetensors")


def facts(run_dir: Path) -> Any:
    return json.loads((run_dir / "best" / "export.json").read_text())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other)


def test_all_weights_are_taken_and_the_source_is_not_needed_again(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    copy, run_dir = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(source, copy, symlinks=True)
    # BatchNorm statistics are frozen and rates are 0: what the run writes is what it began with.
    settings = [*TINY, *STEPS, *STILL, f"data.shards={shards}", f"run.dir={run_dir}"]
    settings += [f"train.init_from={copy}", "model.image_encoder.batch_norm=frozen", "run.seed=5"]
    assert train_main(settings) == 0
    before, after = load_file(copy / "best" / "model.safetensors"), weights(run_dir, 3)
    assert before.keys() == after.keys()
    assert [name for name in before if not same(before[name], after[name])] == []
    tokenizers = [run / "best" / "tokenizer" / "tokenizer.json" for run in (copy, run_dir)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    # Every export says where it is from, also after a resume without the source.
    last = run_dir / "checkpoints" / "step-00000003"
    written = (last / "export" / "model.safetensors").read_bytes()
    shutil.rmtree(copy)
    shutil.rmtree(last)
    (run_dir / "status.json").unlink()  # which says that the run is done
    assert train_main(settings) == 0
    assert (last / "export" / "model.safetensors").read_bytes() == written
    (entry,) = json.loads((last / "export" / "export.json").read_text())["history"]
    assert (entry["init_from"], entry["step"], entry["fresh"]) == (str(copy), 3, [])
    log = (run_dir / "log.txt").read_text()
    assert "weights of the text encoder: text encoder of" in log
    assert f"all weights are those of {copy}/exports/step-00000003 (step 3, weights" in log


def test_a_head_of_other_classes_or_another_shape_starts_fresh_and_is_named(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    before = load_file(source / "best" / "model.safetensors")
    common = [*TINY, *STILL, f"data.shards={shards}", f"train.init_from={source / 'best'}"]
    common += ["train.max_steps=1", "model.image_encoder.batch_norm=frozen"]
    for name, more, fresh in (
        ("fewer", ["data.classes=[negative, positive]"], {"3.weight", "3.bias"}),
        ("order", ["data.classes=[positive, neutral, negative]"], {"3.weight", "3.bias"}),
        ("wider", ["model.fusion.hidden=[24]"], {"0.weight", "0.bias", "3.weight"}),
    ):
        run_dir = tmp_path / name
        assert train_main([*common, *more, f"run.dir={run_dir}"]) == 0
        after = weights(run_dir, 1)
        expected = {f"fusion.classifier.{one}" for one in fresh}
        assert set(facts(run_dir)["history"][0]["fresh"]) == expected
        assert {key for key in after if not same(before[key], after[key])} == expected
        assert "fusion.classifier.3.weight (" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize(
    ("head", "classes"),
    [
        # A gate for each sample: tensors of one row, (1, D) and (1,).
        (["model.fusion={name: gated, width: 8}"], ["negative", "neutral", "positive"]),
        (
            ["model.fusion={name: gated, width: 2}", "model.loss=binary_cross_entropy"],
            ["negative", "positive"],
        ),
        # As many shared tokens as classes.
        (
            ["model.fusion={name: bottleneck, width: 8, num_tokens: 3}"],
            ["negative", "neutral", "positive"],
        ),
    ],
)
def test_only_what_has_a_row_for_each_class_is_fresh_for_other_classes(
    shards: Path, tmp_path: Path, head: list[str], classes: list[str]
) -> None:
    source, run_dir = tmp_path / "source", tmp_path / "run"
    common = [*TINY, *STILL, *head, f"data.shards={shards}", "train.max_steps=1"]
    common += ["model.image_encoder.batch_norm=frozen", "model.auxiliary.text=0.5"]
    settings = [*common, f"data.classes=[{', '.join(classes)}]", f"run.dir={source}"]
    assert train_main(settings) == 0
    settings = [*common, f"data.classes=[{', '.join(classes[::-1])}]", f"run.dir={run_dir}"]
    assert train_main([*settings, f"train.init_from={source}", "run.seed=1"]) == 0
    before, after = weights(source, 1), weights(run_dir, 1)
    layers = ("fusion.classifier.1", "auxiliary.text")
    expected = {f"{layer}.{one}" for layer in layers for one in ("weight", "bias")}
    assert set(facts(run_dir)["history"][0]["fresh"]) == expected
    assert {name for name in after if not same(before[name], after[name])} == expected


def test_a_modality_that_the_source_lacks_is_built_as_configured(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    common = [*TINY, *STILL, f"data.shards={shards}", "train.max_steps=1"]
    text_only = ["model.fusion.name=text_only", f"train.init_from={source}"]
    assert train_main([*common, *text_only, f"run.dir={alone}"]) == 0
    assert train_main([*common, f"train.init_from={alone}", f"run.dir={both}"]) == 0
    before, after = load_file(source / "best" / "model.safetensors"), weights(both, 1)
    for name in (name for name in before if name.startswith("text_encoder.")):
        assert same(before[name], after[name]), name
    entries = facts(both)["history"]
    assert [entry["init_from"] for entry in entries] == [str(source), str(alone)]
    log = (both / "log.txt").read_text()
    assert "weights of the image encoder: fresh (seeded)" in log


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            [
                "model.text_encoder.config={model_type: bert, hidden_size: 48, "
                "num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, "
                "max_position_embeddings: 64}"
            ],
            "the weights of the text encoder in it do not fit the encoder of this configuration "
            "in 20 tensor(s) of 21: ",
        ),
        (["model.text_encoder.tokenizer=words:40"], "was trained with the tokenizer words:500"),
        (["train.init_from=nowhere"], "nowhere is not a run directory, an export or"),
        (["model.fusion.name=image_only", "train.init_from={text}"], "has no encoder that this"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    source: Path,
    shards: Path,
    tmp_path: Path,
    capsys: Captured,
    settings: list[str],
    words: str,
) -> None:
    if any("{text}" in one for one in settings):
        text = tmp_path / "text"
        only = ["model.fusion.name=text_only", "train.max_steps=1", f"run.dir={text}"]
        assert train_main([*TINY, f"data.shards={shards}", *only]) == 0
        settings = [one.replace("{text}", str(text)) for one in settings]
    run = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}"]
    assert train_main([*run, f"train.init_from={source}", *settings]) == 2
    assert words in capsys.readouterr().err
    assert words in status(tmp_path / "run")["reason"]


def test_a_finished_run_says_how_to_train_further(
    source: Path, shards: Path, capsys: Captured
) -> None:
    longer = [*TINY, *STEPS, f"data.shards={shards}", f"run.dir={source}", "train.max_steps=8"]
    assert train_main(longer) == 2
    found = capsys.readouterr().err
    assert "another configuration (train.max_steps: 3 -> 8). It is finished: to train" in found
    assert f"begin a new run from it: train.init_from={source} run.dir=NEW" in found
    itself = [*TINY, f"data.shards={shards}", f"run.dir={source}", f"train.init_from={source}"]
    assert train_main(itself) == 2


def test_prefetch_needs_nothing_that_the_source_brings(
    source: Path, shards: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = [f"data.shards={shards}", "model.text_encoder.name=tiny"]
    words += ["model.image_encoder.name=hf:tiny", f"train.init_from={source}"]
    assert launch_main(["prefetch", *words]) == 0
    found = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()[2:]]
    assert found == [
        ["there", f"text encoder: in {source}"],
        ["there", f"image encoder: in {source}"],
    ]


def test_a_damaged_source_is_refused(source: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source / "best", copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    run = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}"]
    assert train_main([*run, f"train.init_from={copy}"]) == 2
    assert "is damaged: model.safetensors has other bytes" in status(tmp_path / "run")["reason"]


def test_what_the_source_was_trained_on_counts_as_seen(
    source: Path, shards: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The second set has the same samples, split in another way."""
    again = tmp_path / "again"
    again.mkdir()
    other = pack_synthetic(again, samples=300, ratios="2:4:4")
    run_dir, copy = tmp_path / "run", tmp_path / "source"
    shutil.copytree(source, copy, symlinks=True)
    digest = load_manifest(other).digest
    for _ in range(2):
        record_opening(copy, split="test", weights_sha256="0" * 64, shards_digest=digest)
    settings = [*TINY, f"data.shards={other}", f"run.dir={run_dir}", "train.max_steps=1"]
    assert train_main([*settings, f"train.init_from={copy}"]) == 0
    log = (run_dir / "log.txt").read_text()
    assert "sample(s) of the split val of" in log
    assert "sample(s) of the split test of" in log
    assert evaluate_main([str(run_dir), "--no-floors", "--no-page"]) == 0
    assert "the runs that it began from had opened it 2 time(s)" in capsys.readouterr().out
    report = run_dir / "reports" / "test-best"
    leaks = json.loads((report / "metrics.json").read_text())["leaks"]
    assert min(leaks["leaked"]["num_samples"], leaks["clean"]["num_samples"]) > 0
    assert f"was trained on {leaks['leaked']['num_samples']} sample(s) of the split test" in log


def test_two_processes_begin_as_one_does(source: Path, shards: Path, tmp_path: Path) -> None:
    losses = {}
    settings = [*TINY, f"data.shards={shards}", f"train.init_from={source}", "train.max_steps=1"]
    settings += ["model.image_encoder.batch_norm=frozen", "model.fusion.dropout=0"]
    settings += [
        "model.text_encoder.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64, "
        "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
    ]
    assert train_main([*settings, f"run.dir={tmp_path / 'one'}"]) == 0
    ended = launched(
        "train.py", *settings, f"run.dir={tmp_path / 'two'}", config="launch/accelerate/zero3.yaml"
    )
    assert ended.returncode == 0, ended.stderr
    losses = {name: metric_lines(tmp_path / name, "train")[0]["loss"] for name in ("one", "two")}
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)
