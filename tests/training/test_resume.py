"""What may differ between the parts of one run, and what makes it another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmsa.config import Config
from mmsa.errors import UserError
from mmsa.training.resume import (
    check_same_data,
    check_same_run,
    differences,
    earlier_config,
    is_finished,
)


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


@pytest.mark.parametrize(
    "changed",
    [
        {"run": {"dir": "elsewhere", "log_every_steps": 1}},
        {"data": {"shards": "elsewhere", "num_workers": 0}},
        {"eval": {"batch_size": 3, "cpu_threads": 2}},
        {"launch": {"engine": "ddp", "world_size": 4}},
        {
            "train": {
                "micro_batch_size": 4,
                "keep_checkpoints": 9,
                "checkpoint_every_steps": 3,
                "mixed_precision": "bf16",
            }
        },
        {"model": {"text_encoder": {"weights": "a"}, "image_encoder": {"weights": "b"}}},
    ],
)
def test_these_settings_are_free(changed: dict[str, Any]) -> None:
    assert differences(config(), config(**changed)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"run": {"seed": 1}}, "run.seed: 0 -> 1"),
        ({"data": {"window_shards": 8}}, "data.window_shards: 16 -> 8"),
        ({"data": {"max_tokens": 64}}, "data.max_tokens: 128 -> 64"),
        ({"data": {"drop_last": False}}, "data.drop_last: True -> False"),
        ({"data": {"bucket_by_length": False}}, "data.bucket_by_length: True -> False"),
        ({"train": {"global_batch_size": 64}}, "train.global_batch_size: 32 -> 64"),
        ({"train": {"epochs": 6}}, "train.epochs: 5 -> 6"),
        ({"train": {"select_by": "loss"}}, "train.select_by: 'weighted_f1' -> 'loss'"),
        ({"optim": {"text_lr": 3e-5}}, "optim.text_lr: 2e-05 -> 3e-05"),
        ({"model": {"text_encoder": {"name": "x"}}}, "'bert-base-uncased' -> 'x'"),
        ({"model": {"fusion": {"name": "concat", "hidden": [8]}}}, "None -> [8]"),
        ({"model": {"text_encoder": {"config": {"a": 1}}}}, "model.text_encoder.config.a"),
    ],
)
def test_these_settings_make_another_run(changed: dict[str, Any], expected: str) -> None:
    found = differences(config(), config(**changed))
    assert len(found) == 1
    assert expected in found[0]


def test_another_order_of_classes_makes_another_run() -> None:
    # The order of data.classes is that of the logits: swapped names would swap the predictions.
    merged = {"bad": ["negative"], "good": ["neutral", "positive"]}
    swapped = dict(reversed(list(merged.items())))
    assert merged == swapped  # as Python compares them
    found = differences(config(data={"classes": merged}), config(data={"classes": swapped}))
    assert len(found) == 1
    assert found[0].startswith("data.classes: ")
    assert (
        differences(config(data={"classes": merged}), config(data={"classes": dict(merged)})) == []
    )
    found = differences(
        config(data={"classes": ["negative", "positive"]}),
        config(data={"classes": ["positive", "negative"]}),
    )
    assert found == ["data.classes: ['negative', 'positive'] -> ['positive', 'negative']"]


def test_all_differences_are_told_at_once(tmp_path: Path) -> None:
    new = config(run={"seed": 1}, optim={"head_lr": 0.5}, data={"num_workers": 7})
    with pytest.raises(UserError) as refused:
        check_same_run(tmp_path, config(), new)
    assert "(optim.head_lr: 0.001 -> 0.5; run.seed: 0 -> 1)" in str(refused.value)
    assert "Give another run.dir, or the earlier settings" in str(refused.value)
    check_same_run(tmp_path, config(), config(data={"num_workers": 7}))


def test_the_earlier_configuration_is_read_back(tmp_path: Path) -> None:
    assert earlier_config(tmp_path) is None
    first = config(
        run={"dir": "runs/1", "seed": 4},
        data={"classes": {"b": ["negative"], "a": ["positive"]}},
        model={"fusion": {"name": "concat", "hidden": [8], "dropout": 0.5}},
        optim={"text_lr": 3e-5, "eps": 1e-12},
        train={"mixed_precision": "no"},
    )
    (tmp_path / "config.yaml").write_text(first.to_yaml(), encoding="utf-8")
    earlier = earlier_config(tmp_path)
    assert earlier == first
    assert differences(earlier, first) == []


def test_other_shards_are_refused() -> None:
    check_same_data({"shards_digest": "a" * 64}, "a" * 64)
    with pytest.raises(UserError, match="aaaaaaaaaaaa, data.shards has bbbbbbbbbbbb"):
        check_same_data({"shards_digest": "a" * 64}, "b" * 64)


@pytest.mark.parametrize(
    ("content", "finished"),
    [
        (json.dumps({"state": "done"}), True),
        (json.dumps({"state": "running"}), False),
        (json.dumps({"state": "failed"}), False),
        ("{}", False),
        ("", False),
        ("[]", False),
        ("null", False),
        (None, False),
    ],
)
def test_a_run_is_finished_when_its_status_says_so(
    tmp_path: Path, content: str | None, finished: bool
) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert is_finished(tmp_path) is finished
