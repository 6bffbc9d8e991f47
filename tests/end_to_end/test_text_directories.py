"""Directories of Hugging Face text encoders: trained, evaluated, used to predict, trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import TINY, status
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import mmsa
from evaluate import main as evaluate_main
from train import main as train_main

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DIRECTORIES: dict[str, dict[str, Any]] = {
    # As DeBERTa-v3 is configured: half of it are settings that the type has no default for.
    "deberta-v2": SIZES
    | {"intermediate_size": 24, "max_position_embeddings": 64, "relative_attention": True}
    | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0},
    # Without padding token, and without any token around a text.
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


def directory_of(model_type: str, place: Path) -> Path:
    """A model and its tokenizer as `save_pretrained` writes them: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<end>"] if model_type == "gpt2" else ["[PAD]", "[CLS]", "[SEP]"]
    ids = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"eos_token": "<end>", "bos_token": "<end>"}
    numbers: dict[str, int] = {"bos_token_id": 0, "eos_token_id": 0}
    if model_type != "gpt2":
        around = [(token, ids[token]) for token in special[1:]]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, around)
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        numbers = {"pad_token_id": 0}
    torch.manual_seed(0)
    sizes = {**DIRECTORIES[model_type], **numbers, "vocab_size": len(ids)}
    AutoModel.from_config(AutoConfig.for_model(model_type, **sizes)).save_pretrained(place)
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place)
    return place


@pytest.mark.parametrize("model_type", DIRECTORIES)
def test_a_directory_is_trained_evaluated_and_used_again(
    model_type: str, shards: Path, tmp_path: Path
) -> None:
    place = directory_of(model_type, tmp_path / "hf")
    run_dir, again = tmp_path / "run", tmp_path / "again"
    rest = [word for word in TINY if not word.startswith("model.text_encoder")]
    rest += [f"data.shards={shards}", "train.max_steps=2"]
    assert train_main([*rest, f"model.text_encoder.name={place}", f"run.dir={run_dir}"]) == 0
    described = yaml.safe_load((run_dir / "best" / "config.yaml").read_text())
    text = described["model"]["text_encoder"]
    assert text["pooling"] == ("last" if model_type == "gpt2" else "cls")
    assert ("extra" in text["config"]) == (model_type == "deberta-v2")

    # The audit also masks the texts, which leaves GPT-2 not a single token.
    audit = ["--modality-audit"] if model_type == "gpt2" else []
    assert evaluate_main([str(run_dir), "--split", "val", "--no-floors", *audit]) == 0
    scores = json.loads((run_dir / "reports" / "val-best" / "metrics.json").read_text())["scores"]
    assert 0 <= scores["accuracy"]["value"] <= 1
    predictor = mmsa.load(run_dir, device="cpu")
    pictures = [next((shards.parent / "raw" / "data").glob("*.jpg"))] * 2
    both = predictor.predict(["not so good", "so good"], pictures).probabilities
    alone = predictor.predict(["so good"], pictures[:1]).probabilities
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)

    weights = [f"model.text_encoder.weights={run_dir / 'best'}", f"run.dir={again}"]
    assert train_main([*rest, *weights]) == 0
    assert status(again)["state"] == "done"
    assert "pretrained" not in (again / "log.txt").read_text()
    best = (run_dir / "best").resolve()
    assert f"text encoder of export {best}" in (again / "log.txt").read_text()
