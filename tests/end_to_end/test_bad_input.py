"""Wrong input gets one clear sentence, exit code 2 and `status.json`, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from harness import ROOT, TINY, launched, status
from packed import packed_set

from evaluate import main as evaluate_main
from train import main as train_main

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, command: Callable[[list[str]], int], *arguments: str) -> str:
    """Run a command that must end with code 2; returns its message."""
    assert command(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.global_batch_size=18",
            "does not divide by 1 rank x micro-batch 4 = 4; use 16 or 20",
        ),
        ("train.global_batch_size=4000", "fewer than one global batch of 4000"),
        ("launch.world_size=2", "launch.world_size=2, but this launch has 1 process(es)"),
        ("launch.engine=zero2", "this launch is one process without a launcher"),
        ("train.mixed_precision=fp16", "fp16 needs a GPU"),
        ("data.max_tokens=65", "reads 64 tokens at most"),
        (
            "model.text_encoder.pooling=cls && model.text_encoder.config={model_type: gpt2, "
            "n_embd: 8, n_layer: 1, n_head: 2, bos_token_id: 0, "
            "eos_token_id: 0}",
            "gives two different texts the same features",
        ),
        ("data.classes=[good, bad]", "the class 'good', which the shards do not have"),
        ("model.loss=binary_cross_entropy", "there are 3"),
        ("model.text_encoder.tokenizer=words:many", "expected words:N"),
        (
            "model.text_encoder.weights=pretrained && model.text_encoder.config=null"
            " && model.text_encoder.name=nobody/nothing",
            "'nobody/nothing' is not on this machine (looked in ",
        ),
        ("model.image_encoder.weights=/nowhere", "/nowhere"),
        (
            "optim.layer_decay=0.5 && model.text_encoder.config={model_type: albert, "
            "embedding_size: 8, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, "
            "intermediate_size: 32}",
            "optim.layer_decay=0.5, but the layers of model.text_encoder are not known",
        ),
    ],
)
def test_mistakes_that_are_found_before_the_start(
    shards: Path, tmp_path: Path, capsys: Capture, override: str, words: str
) -> None:
    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}"]
    message = refused(capsys, train_main, *settings, *override.split(" && "))
    assert words in message
    told = status(tmp_path / "run")
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert words in told["reason"]


def test_every_problem_of_a_configuration_is_reported_together(capsys: Capture) -> None:
    message = refused(
        capsys,
        train_main,
        "optim.text_lrr=1e-5",
        "model.fusion.name=concatt",
        "train.select_by=f1",
        "train.epochs=none",
    )
    for words in (
        "unknown key optim.text_lrr; did you mean optim.text_lr?",
        "concat",
        "train.select_by: unknown metric 'f1'",
        "train.epochs",
        "run.dir is not given",
        "data.shards is not given",
    ):
        assert words in message


def test_the_main_rank_reports_a_mistake_that_another_finds_first() -> None:
    """The launcher ends all ranks when one ends; the status file is not known yet."""
    done = launched("tests/end_to_end/late_main_rank.py")
    assert done.returncode == 1
    assert done.stderr.count("error: a mistake that all ranks find") == 1


def test_a_missing_configuration_file(capsys: Capture) -> None:
    message = refused(capsys, train_main, "--config", "nowhere.yaml")
    assert "nowhere.yaml cannot be read" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "is not a shards directory"),
        (lambda folder: _edit(folder, "version", 99), "has format and version"),
        (lambda folder: _edit(folder, "dataset", "other"), "was changed after packing"),
        (lambda folder: (folder / "train-00000.idx").unlink(), "train-00000.idx cannot be read"),
        (
            lambda folder: (folder / "train-00000.tar").unlink(),
            "train-00000.tar cannot be read (No such",
        ),
    ],
)
def test_shards_that_cannot_be_used(
    shards: Path, tmp_path: Path, capsys: Capture, change: Callable[[Path], None], words: str
) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    settings = [*TINY, f"data.shards={copy}", f"run.dir={tmp_path / 'run'}"]
    assert words in refused(capsys, train_main, *settings)
    assert words in status(tmp_path / "run")["reason"]


def _edit(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_a_run_directory_of_another_configuration(
    shards: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main(settings) == 0
    before = status(tmp_path / "run")
    capsys.readouterr()
    message = refused(capsys, train_main, *settings, "optim.text_lr=5e-5")
    assert "optim.text_lr: 0.001 -> 5e-05" in message
    assert status(tmp_path / "run") == before  # the finished run is not marked as failed


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("bad-input") / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=1"]
    assert train_main(settings) == 0
    return run_dir


@pytest.fixture(scope="module")
def no_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set that has only the split train."""
    directory = tmp_path_factory.mktemp("bad-input") / "no-test"
    directory.mkdir()
    packed_set(directory)
    return directory


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not a run directory, an export or a complete checkpoint"),
        (["{run}", "--checkpoint", "7"], "has no checkpoint '7'; use best, last or one of its"),
        (["{run}", "--shards", "nowhere"], "nowhere is not a shards directory"),
        (["{run}", "data.shards=elsewhere"], "takes no settings, but was given data.shards=else"),
        (["{run}", "--shards", "{no_test}"], "no-test have no split 'test'; they have: train"),
    ],
)
def test_evaluation_of_a_missing_target(
    trained: Path, no_test: Path, capsys: Capture, arguments: list[str], words: str
) -> None:
    filled = [argument.format(run=trained, no_test=no_test) for argument in arguments]
    assert words in refused(capsys, evaluate_main, *filled)


def test_a_set_without_a_split_to_validate_on(
    no_test: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = [*TINY, f"data.shards={no_test}", f"run.dir={tmp_path / 'run'}"]
    message = refused(capsys, train_main, *settings)
    assert "training needs the splits train and val" in message
    assert "have no val; they have: train" in message
    assert "or evaluate a trained run on them" in message


def test_settings_on_both_sides_of_the_configuration(tmp_path: Path, capsys: Capture) -> None:
    words = [
        f"run.dir={tmp_path / 'run'}",
        "--config",
        "launch/runs/demo.yaml",
        "data.shards=nowhere",
    ]
    assert "nowhere is not a shards directory" in refused(capsys, train_main, *words)


@pytest.mark.parametrize("command", [["train.py"], ["evaluate.py"], ["-m", "shards"]])
def test_help_loads_no_heavy_library(command: list[str]) -> None:
    """--help stays under a second because it imports neither torch nor transformers."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0
    assert "usage:" in ended.stdout
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "accelerate", "sklearn", "webdataset"}


def test_a_resume_in_another_precision(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    run_dir = tmp_path / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=1"]
    assert train_main(settings) == 0
    (run_dir / "status.json").unlink()  # as if it had been interrupted
    capsys.readouterr()
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    message = refused(capsys, train_main, *settings, "train.mixed_precision=bf16")
    assert "(mixed precision of the launch: no -> bf16 (set train.mixed_precision=no))" in message


def test_run_directories_that_cannot_be_used(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = [*TINY, f"data.shards={shards}", "train.max_steps=1"]
    (tmp_path / "file").write_text("mine")
    message = refused(capsys, train_main, *settings, f"run.dir={tmp_path / 'file'}")
    assert "is a file; choose another run.dir" in message
    assert (tmp_path / "file").read_text() == "mine"
    message = refused(capsys, train_main, *settings, "run.dir=/proc/nowhere")
    assert "cannot be a run directory" in message
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("mine")
    message = refused(capsys, train_main, *settings, f"run.dir={tmp_path / 'papers'}")
    assert "contains files of something else (thesis.tex, ...)" in message
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["thesis.tex"]


def test_a_start_that_failed_leaves_its_directory_usable(shards: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main([*settings, "data.max_tokens=65"]) == 2
    assert train_main(settings) == 0


@pytest.mark.parametrize("option", ["--batch-size=0", "--batch-size=-3", "--num-workers=-1"])
def test_numbers_out_of_range(option: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate_main(["anywhere", option])
    assert ended.value.code == 2
    assert "is not an integer of at least" in capsys.readouterr().err


def test_what_a_predictor_is_given(shards: Path, tmp_path: Path) -> None:
    import mmsa
    from mmsa.errors import UserError

    settings = [*TINY, f"data.shards={shards}", "train.max_steps=1", "model.fusion.name=text_only"]
    assert train_main([*settings, f"run.dir={tmp_path / 'text'}"]) == 0
    predictor = mmsa.load(tmp_path / "text", device="cpu")
    assert (
        predictor.predict(["what a day"]).labels == predictor.predict(["what a day"], None).labels
    )
    for texts, words in (
        (None, "give texts as a list"),
        ("what a day", "give texts as a list"),
        ([3], "text 0 is not a string"),
        (["fine", "  "], "text 1: empty text"),
    ):
        with pytest.raises(UserError, match=words):
            predictor.predict(texts, on_error="raise")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="found 1 texts and 2 images"):
        predictor.predict(["a"], ["b", "c"])
