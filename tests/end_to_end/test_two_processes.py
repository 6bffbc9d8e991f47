"""Two real gloo processes under `accelerate launch` with the project's own configuration file.

Each test first asserts that two connected processes ran, because a launch can silently start one.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from harness import (
    TINY,
    end_group,
    launched,
    metric_lines,
    run_by_launch,
    start_launch,
    status,
    wait_for,
)
from safetensors.torch import load_file

from train import main as train_main

TWO = ["launch.world_size=2", "launch.engine=ddp"]


def assert_two_connected(run_dir: Path) -> None:
    log = (run_dir / "log.txt").read_text()
    assert "engine ddp, world_size 2, backend gloo, device cpu, mixed_precision no" in log


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    settings = [*TINY, *TWO, f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=2"]
    settings += ["train.checkpoint_every_steps=5", "run.profile=true"]
    ended = launched("train.py", *settings)
    assert ended.returncode == 0, ended.stderr
    assert_two_connected(run_dir)
    return run_dir


def test_a_profile_says_where_the_time_of_a_step_goes(trained: Path) -> None:
    profile = trained / "profile"
    content = json.loads((profile / "profile.json").read_text())
    assert (content["steps"], content["timed_steps"]) == (20, 5)
    parts = {name: part["ms"] for name, part in content["parts"].items()}
    assert list(parts) == ["data", "forward", "backward", "optimizer", "other"]
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(content["ms_per_step"], abs=0.01)
    under_way, traced = content["communication"]["under_way_ms"], content["communication"]
    assert 0 <= traced["alone_ms"] <= under_way <= traced["ms_per_step"]
    assert under_way > 0
    assert {name: one["times"] for name, one in content["beside"].items()} == {
        "validation": 2,
        "checkpoint": 4,
    }
    trace = json.loads(gzip.decompress((profile / "trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    # Two steps of two micro-steps; the ranks' gradients are reduced only in the second.
    assert [names.count(name) for name in ("data", "forward", "backward")] == [4, 4, 4]
    assert "gloo:all_reduce" in names
    table = (profile / "profile.txt").read_text().splitlines()
    assert [row.split()[0] for row in table if row][:7] == ["of", *parts, "all"]


def test_two_processes_train_as_one_does(shards: Path, tmp_path: Path) -> None:
    """The gradient of a step does not depend on how its global batch is divided (float32)."""
    settings = [
        *[*TINY, f"data.shards={shards}", "train.max_steps=6", "optim.eps=1e-4"],
        *["model.image_encoder.train=frozen", "model.fusion.dropout=0.0"],
        "model.text_encoder.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64, "
        "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_main([*settings, f"run.dir={one}", "train.micro_batch_size=16"]) == 0
    ended = launched("train.py", *settings, *TWO, f"run.dir={two}")
    assert ended.returncode == 0, ended.stderr
    assert_two_connected(two)
    log = (two / "log.txt").read_text()
    assert "micro-batch 4 x accumulation 2 x world 2" in log
    losses = [[line["loss"] for line in metric_lines(run, "train")] for run in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    weights = [load_file(run / "best" / "model.safetensors") for run in (one, two)]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(
            weights[1][name].numpy(), expected.numpy(), rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_metrics_have_the_same_bytes_from_one_and_two_processes(
    trained: Path, tmp_path: Path
) -> None:
    from evaluate import main as evaluate_main

    one, two = tmp_path / "one", tmp_path / "two"
    arguments = [str(trained), "--split", "test", "--modality-audit"]
    assert evaluate_main([*arguments, "--out", str(one)]) == 0
    ended = run_by_launch("evaluate.py", *arguments, "--out", str(two))
    assert ended.returncode == 0, ended.stderr
    assert "weighted avg" in ended.stdout
    facts = json.loads((two / "evaluation_run.json").read_text())
    assert (facts["engine"], facts["world_size"], facts["backend"]) == ("ddp", 2, "gloo")
    # 58 samples in batches of 16: rank 0 computed the first and third, rank 1 the others.
    metrics = json.loads((two / "metrics.json").read_text())
    assert facts["samples_per_rank"] == [32, metrics["num_samples"] - 32]
    names = ["metrics.json", "predictions.jsonl", "report.txt", "confusion_matrix.png"]
    for name in [*names, "modality_audit.json"]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    alone = json.loads((one / "evaluation_run.json").read_text())
    assert (alone["engine"], alone["world_size"]) == ("single", 1)


def test_a_prediction_has_the_same_bytes_from_one_and_two_processes(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    from mmsa.__main__ import main as mmsa_main

    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    words = ["predict", str(trained), str(shards), "--batch-size", "2", "--out"]
    assert mmsa_main([*words, str(one)]) == 0
    ended = launched("-m", "mmsa", *words, str(two))
    assert ended.returncode == 0, ended.stderr
    assert "58 of 58 rows predicted" in ended.stdout
    assert ended.stdout.count("rows predicted") == 1
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "two.csv"]


def test_a_killed_run_resumes_to_the_same_weights(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    """kill -9 of the whole launch once there is a checkpoint; the same command resumes."""
    run_dir = tmp_path / "killed"
    settings = [*TINY, *TWO, f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=2"]
    settings.append("train.checkpoint_every_steps=5")
    process = start_launch("train.py", *settings)
    wait_for(run_dir / "checkpoints" / "step-00000005" / "COMPLETE", process)
    end_group(process)
    assert status(run_dir)["state"] == "running"
    ended = launched("train.py", *settings)
    assert ended.returncode == 0, ended.stderr
    assert_two_connected(run_dir)
    assert "resumed from" in (run_dir / "log.txt").read_text()
    last = Path("checkpoints") / "step-00000020" / "export" / "model.safetensors"
    assert (run_dir / last).read_bytes() == (trained / last).read_bytes()


def test_another_number_of_processes_is_refused_before_any_collective(
    shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "launch.world_size=4"]
    ended = launched("train.py", *settings)
    assert ended.returncode == 1  # the launcher's; the script's own is in status.json
    assert status(run_dir)["exit_code"] == 2
    assert "launch.world_size=4, but this launch has 2 process(es)" in status(run_dir)["reason"]
    assert ended.stderr.count("error: launch.world_size=4") == 1  # one message for two ranks


def test_a_damaged_shard_ends_every_process_with_its_name(shards: Path, tmp_path: Path) -> None:
    copy, run_dir = tmp_path / "shards", tmp_path / "run"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    victim = copy / "train-00000.tar"
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    settings = [*TINY, *TWO, f"data.shards={copy}", f"run.dir={run_dir}", "train.epochs=2"]
    ended = run_by_launch(*settings)
    assert ended.returncode == 2
    assert ended.stderr.count("train-00000.tar is damaged") == 1
    assert "Traceback" not in ended.stderr
    assert "ChildFailedError" in (run_dir / "launch.log").read_text()
    told = status(run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert "train-00000.tar is damaged at sample" in told["reason"]
    assert "mvsa-single-" in told["reason"]
