"""`python -m launch prefetch`: what is cached, what is missing and where it looked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from launch.__main__ import main as launch_main
from launch.prefetch import missing_for_jobs
from launch.site import ROOT
from mmsa.config import load_config
from mmsa.data.text import word_tokenizer
from mmsa.process.arguments import take_configuration


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A text encoder with its tokenizer, in a directory."""
    directory = tmp_path / "encoder"
    tokenizer = word_tokenizer(["a few words"], 3, 8)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, **sizes)
    BertModel(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def test_files_in_the_cache(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"model.text_encoder.name={encoder}", "model.fusion.name=text_only"]
    assert launch_main(["prefetch", "launch/runs/full_finetune.yaml", *settings]) == 0
    said = capsys.readouterr().out
    assert f"there    tokenizer: {encoder}\nthere    text encoder: {encoder}\n" in said
    assert "image encoder" not in said  # a model that reads no images
    # A setting may follow an option; an option that is none is refused.
    words = ["launch/runs/full_finetune.yaml", settings[0], "--offline", settings[1]]
    assert launch_main(["prefetch", *words]) == 0
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit):
        launch_main(["prefetch", "launch/runs/demo.yaml", "--ofline=1"])
    assert "unrecognized arguments: --ofline=1" in capsys.readouterr().err
    # A configuration with random weights needs no files.
    assert launch_main(["prefetch", "launch/runs/demo.yaml"]) == 0
    assert "tokenizer" not in capsys.readouterr().out


def test_missing_files(encoder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    site = tmp_path / "site.yaml"
    site.write_text(f"cache: {cache}\n")
    command = [sys.executable, "-m", "launch", "prefetch", "launch/runs/full_finetune.yaml"]
    done = subprocess.run(
        [*command, f"model.text_encoder.tokenizer={encoder}", "--offline", "--site", str(site)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"cache of Hugging Face: {cache}/huggingface/hub\n" in done.stdout
    assert f"cache of torchvision:  {cache}/torch/hub/checkpoints\n" in done.stdout
    assert f"there    tokenizer: {encoder}\n" in done.stdout
    assert "MISSING  text encoder: bert-base-uncased\nMISSING  image encoder: resnet50\n" in (
        done.stdout
    )
    assert (
        "launch/runs/full_finetune.yaml needs files that are not in the cache: 2 problems"
        in done.stderr
    )
    assert f"(looked in {cache}/huggingface/hub)" in done.stderr
    assert f"(looked for {cache}/torch/hub/checkpoints/resnet50-11ad3fa6.pth)" in done.stderr


RANDOM = ["model.text_encoder.weights=none", "model.image_encoder.weights=none"]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        # The hub also has tokenizers, and the architectures of random weights.
        (
            [*RANDOM, "model.image_encoder.name=hf:microsoft/resnet-18"],
            [
                "MISSING  tokenizer: bert-base-uncased",
                "MISSING  text encoder: bert-base-uncased, random weights",
                "MISSING  image encoder: hf:microsoft/resnet-18, random weights",
            ],
        ),
        # It ends before it can name any part.
        (["train.init_from=acme/mood"], ["error: there is no acme/mood here, and as a name on"]),
        (["launch/runs/demo.yaml"], []),
    ],
    ids=["random", "init_from", "demo"],
)
def test_what_jobs_would_not_find(
    words: list[str], missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(*take_configuration(None, words))
    found = missing_for_jobs(config, words, str(tmp_path))
    assert len(found) == len(missing)
    assert all(line.startswith(start) for line, start in zip(found, missing, strict=True))
