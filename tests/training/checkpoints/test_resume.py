"""What may differ between the parts of one run, and what makes it another one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmsa.config import Config
from mmsa.errors import UserError
from mmsa.process.command import Command
from mmsa.process.runtime import World
from mmsa.training import begin
from mmsa.training.checkpoints.resume import (
    check_same_run,
    config_sha256,
    continuation_in_words,
    differences,
    is_finished,
)
from mmsa.training.checkpoints.run_config import earlier_config


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


def test_a_run_from_before_automatic_pooling_is_resumed_without_naming_it() -> None:
    before = config(model={"text_encoder": {"pooling": "cls"}})
    assert differences(before, config()) == []
    named = config(model={"text_encoder": {"pooling": "mean"}})
    changed = ["model.text_encoder.pooling: mean -> auto"]
    assert differences(named, config()) == changed


def test_last_n_without_effect_is_dropped_on_resume() -> None:
    """A new command is refused with it (`encoder_problems`), and a run may have begun with it."""
    before = config(model={"text_encoder": {"last_n": 2}})
    assert differences(before, config()) == []
    chosen = config(model={"text_encoder": {"train": "last_n", "last_n": 2}})
    assert differences(
        chosen, config(model={"text_encoder": {"train": "last_n", "last_n": 1}})
    ) == ["model.text_encoder.last_n: 2 -> 1"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"run": {"seed": 1}}, "run.seed: 0 -> 1"),
        ({"data": {"window_shards": 8}}, "data.window_shards: 16 -> 8"),
        ({"data": {"groups": 2}}, "data.groups: not set -> 2"),
        ({"data": {"max_tokens": 64}}, "data.max_tokens: 128 -> 64"),
        ({"data": {"drop_last": False}}, "data.drop_last: true -> false"),
        ({"data": {"bucket_by_length": False}}, "data.bucket_by_length: true -> false"),
        ({"train": {"global_batch_size": 64}}, "train.global_batch_size: 32 -> 64"),
        ({"train": {"epochs": 6}}, "train.epochs: 5 -> 6"),
        ({"train": {"select_by": "loss"}}, "train.select_by: weighted_f1 -> loss"),
        ({"optim": {"text_lr": 3e-5}}, "optim.text_lr: 2e-05 -> 3e-05"),
        ({"model": {"text_encoder": {"name": "x"}}}, "name: bert-base-uncased -> x"),
        ({"model": {"fusion": {"name": "concat", "hidden": [8]}}}, "not set -> [8]"),
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
    assert found == ["data.classes: [negative, positive] -> [positive, negative]"]


def test_all_differences_are_told_at_once(tmp_path: Path) -> None:
    first, new = config(), config(run={"seed": 1}, optim={"head_lr": 0.5}, data={"num_workers": 7})
    same = {"precision": "no", "shards_digest": "a" * 64}
    with pytest.raises(UserError) as refused:
        check_same_run(tmp_path, first, new, checkpoint=None, **same)
    assert "(optim.head_lr: 0.001 -> 0.5; run.seed: 0 -> 1)" in str(refused.value)
    assert "Choose another run.dir, or use the earlier settings" in str(refused.value)
    check_same_run(tmp_path, first, config(data={"num_workers": 7}), checkpoint=None, **same)
    # With a checkpoint, also what the configuration does not show.
    saved = {"checkpoint": checkpoint_of(tmp_path, first)}
    check_same_run(tmp_path, first, config(data={"num_workers": 7}), **saved, **same)
    with pytest.raises(UserError) as refused:
        check_same_run(tmp_path, first, new, precision="bf16", shards_digest="b" * 64, **saved)
    assert (
        "(optim.head_lr: 0.001 -> 0.5; run.seed: 0 -> 1; digest of the shards: aaaaaaaaaaaa -> "
        "bbbbbbbbbbbb; mixed precision of the launch: no -> bf16 (set train.mixed_precision=no))"
    ) in str(refused.value)
    check_same_run(tmp_path, first, first, precision="no", shards_digest=None, **saved)


def test_an_edited_configuration_of_the_run_does_not_hide_a_difference(tmp_path: Path) -> None:
    same = {"precision": "no", "shards_digest": "a" * 64}
    same["checkpoint"] = checkpoint_of(tmp_path, config())
    edited = config(run={"seed": 1})
    with pytest.raises(UserError, match=r"\(run.seed: 0 -> 1\)"):
        check_same_run(tmp_path, edited, edited, **same)
    check_same_run(tmp_path, edited, config(), **same)  # the run is what its checkpoint says


def checkpoint_of(run_dir: Path, config: Config) -> Path:
    """What the newest checkpoint of a run of `config` says of itself."""
    export = run_dir / "checkpoints" / "step-00000003" / "export"
    export.mkdir(parents=True)
    (export / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    state = {
        "format": "mmsa-checkpoint",
        "version": 1,
        "config_sha256": config_sha256(config),
        "shards_digest": "a" * 64,
        "mixed_precision": "no",
    }
    content = json.dumps(state)
    (export.parent / "state.json").write_text(content)
    (export.parent / "COMPLETE").write_text(json.dumps({"state.json": len(content)}))
    return export.parent


def test_the_hash_is_of_what_makes_a_run_what_it_is() -> None:
    assert config_sha256(config()) == config_sha256(config(data={"num_workers": 7}))
    assert config_sha256(config()) != config_sha256(config(run={"seed": 1}))
    merged = {"bad": ["negative"], "good": ["positive"]}
    swapped = dict(reversed(list(merged.items())))
    assert config_sha256(config(data={"classes": merged})) != config_sha256(
        config(data={"classes": swapped})
    )


def test_another_launch_is_told_what_it_means() -> None:
    state = {"engine": "zero2", "world_size": 4}
    assert continuation_in_words(state, engine="zero2", world_size=4, batchnorm=True) == []
    by_engine = continuation_in_words(state, engine="ddp", world_size=4, batchnorm=True)
    assert len(by_engine) == 1
    assert "was written under zero2, this launch is ddp: weights, optimizer state" in by_engine[0]
    by_world = continuation_in_words(state, engine="zero2", world_size=2, batchnorm=True)
    assert [line.split(":")[0].split(" from ")[0] for line in by_world] == [
        "the checkpoint was written by 4 process(es), this launch has 2",
        "each rank starts",
    ]
    assert "the mean of the 4 ranks' BatchNorm statistics" in by_world[1]
    for alike in ({"batchnorm": False}, {"batchnorm": True}):
        state["world_size"] = 1 if alike["batchnorm"] else 4
        assert len(continuation_in_words(state, engine="zero2", world_size=2, **alike)) == 1


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
    found = earlier_config(tmp_path)
    assert found is not None
    earlier = found.required(tmp_path)
    assert earlier == first
    assert differences(earlier, first) == []


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


def test_ranks_of_a_gpu_launch_begin_in_any_order_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the main rank writes to a new directory, and what it writes is no one else's file."""
    monkeypatch.setattr(begin, "device_type", lambda: "cuda")  # asked for NCCL's record alone
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "")  # put back as it was, whatever happens
    run_dir = tmp_path / "run"
    run, data = {"dir": str(run_dir)}, {"shards": "none"}
    new = config(run=run, data=data, train={"mixed_precision": "no"})
    for rank in (1, 0, 1, 0):  # a launch that another rank reaches first, twice
        monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE")
        command = Command(World(rank=rank, world_size=2, launched=True))
        there_before = run_dir.exists()
        with command.resources:
            assert begin.begin_run(command, new) == begin.Beginning(None)
        assert run_dir.exists() is (there_before or rank == 0)
        assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{run_dir}/nccl/rank_"
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "log.txt", "nccl"]
