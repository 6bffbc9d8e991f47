"""The same training under every engine, on real processes connected by gloo.

Each launch first logs its actual engine, world size and precision, because a mistaken launch
silently starts as something else.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from engines import SAME_EVERYWHERE, launch_file, train
from families import FAMILIES
from harness import LAUNCH, ROOT, TINY, launched, metric_lines, status
from safetensors.torch import load_file

from mmsa.errors import EXIT_PREEMPTED, EXIT_USER_ERROR
from train import main as train_main


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, to which all others must be equal."""
    run_dir = tmp_path_factory.mktemp("engines") / "alone"
    settings = [*SAME_EVERYWHERE, "train.micro_batch_size=16", f"data.shards={shards}"]
    assert train_main([*settings, f"run.dir={run_dir}"]) == 0
    return run_dir


def auxiliary_scores(run_dir: Path) -> dict[str, float]:
    """Those of the last validation."""
    last = metric_lines(run_dir, "validation")[-1]
    return {name: value for name, value in last.items() if name.startswith("auxiliary_")}


@pytest.mark.parametrize(
    ("engine", "world_size", "micro_batch_size"),
    [
        ("ddp", 2, 8),
        ("ddp", 4, 2),
        pytest.param("zero0", 2, 4, marks=pytest.mark.soak),  # only for comparisons
        ("zero1", 2, 4),
        pytest.param("zero1", 4, 4, marks=pytest.mark.soak),  # covered by test_elastic.py
        ("zero2", 2, 4),
        pytest.param("zero2", 4, 4, marks=pytest.mark.soak),  # covered by test_elastic.py
        ("zero3", 2, 4),
        pytest.param("zero3", 4, 4, marks=pytest.mark.soak),  # covered by test_elastic.py
    ],
)
def test_losses_and_weights_do_not_depend_on_engine_and_world(
    alone: Path, shards: Path, tmp_path: Path, engine: str, world_size: int, micro_batch_size: int
) -> None:
    settings = [*SAME_EVERYWHERE, f"data.shards={shards}"]
    settings += [f"train.micro_batch_size={micro_batch_size}"]
    run_dir = train(tmp_path / "run", engine, world_size, *settings)
    accumulation = 16 // micro_batch_size // world_size
    assert f"accumulation {accumulation} x world {world_size}" in (run_dir / "log.txt").read_text()
    tolerance = 1e-3 if engine == "zero3" else 1e-5
    losses = [[line["loss"] for line in metric_lines(run, "train")] for run in (alone, run_dir)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
    of_heads = [auxiliary_scores(run) for run in (alone, run_dir)]
    assert len(of_heads[0]) == 4
    assert of_heads[1] == pytest.approx(of_heads[0], abs=0.02)  # one sample of 57
    weights = [load_file(run / "best" / "model.safetensors") for run in (alone, run_dir)]
    assert weights[1].keys() == weights[0].keys()
    for name, expected in weights[0].items():
        np.testing.assert_allclose(
            *[weights[1][name].numpy(), expected.numpy()],
            rtol=tolerance,
            atol=tolerance * 1e-2,
            err_msg=name,
        )


@pytest.mark.parametrize(
    ("engine", "fusion", "family", "batch_norms"),
    [
        ("ddp", "cross_attention", "hugging face", 6),
        pytest.param("zero1", "concat", "hugging face", 6, marks=pytest.mark.soak),
        ("zero2", "gated", "hugging face", 6),
        # A stem, four blocks of two, four shortcuts.
        ("zero3", "bottleneck", "timm convolutions", 13),
        pytest.param("zero1", "bottleneck", "hugging face", 6, marks=pytest.mark.soak),
        pytest.param("zero2", "cross_attention", "hugging face", 6, marks=pytest.mark.soak),
        pytest.param("zero3", "cross_attention", "hugging face", 6, marks=pytest.mark.soak),
        pytest.param("ddp", "gated", "hugging face", 6, marks=pytest.mark.soak),
    ],
)
def test_bf16_with_batch_norm_and_recomputed_layers(
    shards: Path, tmp_path: Path, engine: str, fusion: str, family: str, batch_norms: int
) -> None:
    """BatchNorm in training mode, dropout, gradient checkpointing, bf16: finite, and like DDP."""
    settings = [*TINY, f"data.shards={shards}", "train.max_steps=4", "train.mixed_precision=bf16"]
    settings += FAMILIES[family]
    settings += ["model.text_encoder.gradient_checkpointing=true"]
    settings += ["model.image_encoder.gradient_checkpointing=true"]
    settings += [f"model.fusion.name={fusion}"]
    run_dir = train(tmp_path / "run", engine, 2, *settings)
    assert "mixed_precision bf16" in (run_dir / "log.txt").read_text()
    losses = [line["loss"] for line in metric_lines(run_dir, "train")]
    assert len(losses) == 4
    # The first loss precedes any update: it is the same up to bf16's rounding (8 bits, 2^-8).
    single = tmp_path / "single"
    assert train_main([*settings, f"run.dir={single}", "train.max_steps=1"]) == 0
    expected = metric_lines(single, "train")[0]["loss"]
    assert losses[0] == pytest.approx(expected, rel=0.1)  # dropout draws differ by rank
    assert np.isfinite(losses).all()
    if fusion == "gated":
        gates = [line["fusion_image_gate"] for line in metric_lines(run_dir, "train")]
        first = metric_lines(single, "train")[0]["fusion_image_gate"]
        assert gates[0] == pytest.approx(first, rel=0.05)
        assert all(0 < gate < 1 for gate in gates)
    exported = load_file(run_dir / "best" / "model.safetensors")
    assert all(
        str(tensor.dtype) in ("torch.float32", "torch.int64") for tensor in exported.values()
    )
    means = [value for name, value in exported.items() if name.endswith("running_mean")]
    assert len(means) == batch_norms
    assert all(float(mean.abs().sum()) > 0 for mean in means)


def test_evaluation_has_the_same_bytes_under_every_engine(alone: Path, tmp_path: Path) -> None:
    bytes_of = set()
    for engine in ("ddp", "zero3"):
        out = tmp_path / engine
        ended = launched(
            *["evaluate.py", str(alone), "--split", "val", "--out", str(out)],
            config=launch_file(engine, tmp_path),
        )
        assert ended.returncode == 0, ended.stderr
        facts = json.loads((out / "evaluation_run.json").read_text())
        assert facts["world_size"] == 2
        assert min(facts["samples_per_rank"]) > 0
        bytes_of.add((out / "metrics.json").read_bytes())
    assert len(bytes_of) == 1


@pytest.mark.parametrize(
    ("options", "environment", "settings", "told"),
    [
        # Accelerate silently starts ONE process instead of two.
        (["--cpu", "--num_processes", "2"], {}, ["launch.world_size=2"], "this launch has 1"),
        (
            ["--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2"],
            {},
            ["launch.engine=zero2"],
            "this launch is ddp with 2 process(es)",
        ),
        # Plain DDP would start silently.
        (
            ["--config_file", "launch/accelerate/zero2.yaml", "--num_processes", "2"],
            {"ACCELERATE_USE_CPU": "true"},
            [],
            "Remove the CPU flag",
        ),
        (
            ["--config_file", "launch/accelerate/zero2.yaml", "--num_processes", "2"],
            {},
            ["train.mixed_precision=fp16"],
            "fp16 is not supported under DeepSpeed",
        ),
    ],
)
def test_mistaken_launches_end_with_a_clear_message(
    shards: Path,
    tmp_path: Path,
    options: list[str],
    environment: dict[str, str],
    settings: list[str],
    told: str,
) -> None:
    import os

    run_dir = tmp_path / "run"
    command = [*LAUNCH, *options]
    command += ["--main_process_port", "0", "train.py", *TINY, f"data.shards={shards}"]
    ended = subprocess.run(
        [*[part for part in command if part != "train.mixed_precision=no"], f"run.dir={run_dir}"]
        + settings,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0
    assert told in ended.stderr
    assert status(run_dir)["exit_code"] == EXIT_USER_ERROR
    assert told in status(run_dir)["reason"]


def test_a_compiled_run_resumes_uncompiled(shards: Path, tmp_path: Path) -> None:
    """Tensor names do not depend on whether the encoders were compiled."""
    settings = [*TINY, f"data.shards={shards}", "model.fusion.name=image_only", "train.epochs=1"]
    settings += ["train.checkpoint_every_steps=5", f"run.dir={tmp_path / 'run'}"]
    whole = [*settings, f"run.dir={tmp_path / 'whole'}"]
    assert train_main([*settings, "train.compile=true", "run.max_time=1"]) == EXIT_PREEMPTED
    assert train_main(settings) == 0
    assert train_main(whole) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "resumed from" in log
    assert "graph(s) compiled in the first step" in log
    losses = [
        [line["loss"] for line in metric_lines(tmp_path / name, "train")]
        for name in ("run", "whole")
    ]
    assert len(losses[0]) == len(losses[1]) == 10
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    names = [
        set(load_file(tmp_path / name / "best" / "model.safetensors")) for name in ("run", "whole")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [("ddp", "no", 1e-5), pytest.param("zero2", "bf16", 2**-8, marks=pytest.mark.soak)],
)
def test_gradients_summed_in_bf16_change_results_by_rounding_alone(
    alone: Path, shards: Path, tmp_path: Path, engine: str, precision: str, tolerance: float
) -> None:
    settings = [*SAME_EVERYWHERE, "train.micro_batch_size=8", f"data.shards={shards}"]
    settings += [f"train.mixed_precision={precision}", "train.communication=bf16"]
    run_dir = train(tmp_path / "run", engine, 2, *settings)
    losses = [[line["loss"] for line in metric_lines(run, "train")] for run in (alone, run_dir)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=tolerance)  # before any gradient
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
    assert not np.allclose(losses[1][1:], losses[0][1:], rtol=1e-6)
