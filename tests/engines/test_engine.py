"""Mistaken launches, each of which Accelerate ends with exit code 0, are refused beforehand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa.config import LaunchConfig, load_config
from mmsa.data.plan import batch_plan
from mmsa.engines import engine, hardware
from mmsa.engines.deepspeed_settings import deepspeed_settings, file_precision
from mmsa.engines.single_process_warning import single_process_reason
from mmsa.errors import UserError
from mmsa.process.runtime import World, world_from_environment
from mmsa.training.model_for_engine import check_taken_by_engine

DDP = World(launched=True, world_size=2)
ZERO2 = World(launched=True, world_size=2, deepspeed=True, zero_stage=2)
PLAN = batch_plan(160, global_batch_size=16, micro_batch_size=4, world_size=2, drop_last=True)


def launch(**settings: Any) -> LaunchConfig:
    return LaunchConfig(**settings)


@pytest.mark.parametrize(
    ("expected", "world", "told"),
    [
        (launch(world_size=2), World(), "but this launch has 1 process"),
        (launch(world_size=4), DDP, "but this launch has 2 process"),
        (launch(engine="ddp"), World(), "one process without a launcher"),
        (launch(engine="zero2"), DDP, "but this launch is ddp with 2"),
        (launch(engine="zero2"), DDP, "--config_file launch/accelerate/zero2.yaml"),
        (launch(engine="zero3"), ZERO2, "but this launch is zero2"),
        (launch(engine="ddp"), ZERO2, "but this launch is zero2"),
        (launch(), World(launched=True, fsdp=True), "which mmsa does not support"),
        (
            launch(),
            World(launched=True, deepspeed=True, forced_cpu=True),
            "Remove the CPU flag",
        ),
        (launch(), World(deepspeed=True), "without a launcher"),
    ],
)
def test_a_launch_that_is_not_the_expected_one_is_refused(
    expected: LaunchConfig, world: World, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        engine.check_launch(expected, world)


@pytest.mark.parametrize(
    ("expected", "world"),
    [
        (launch(), World()),
        (launch(), DDP),
        (launch(), ZERO2),
        (launch(engine="ddp", world_size=2), DDP),
        (launch(engine="zero2", world_size=2), ZERO2),
    ],
)
def test_the_expected_launch_is_let_through(expected: LaunchConfig, world: World) -> None:
    engine.check_launch(expected, world)


def test_what_launchers_say_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "zero3.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }.items():
        monkeypatch.setenv(name, value)
    world = world_from_environment()
    assert (world.rank, world.world_size, world.engine) == (3, 4, "zero3")
    assert world.mixed_precision == "bf16"
    monkeypatch.delenv("RANK")
    alone = world_from_environment()
    assert (alone.world_size, alone.stray_world_size, alone.launched) == (1, 4, False)


@pytest.mark.parametrize(
    ("world", "num_gpus", "reason"),
    [
        (World(), 0, ""),
        (World(), 1, ""),
        (World(), 4, "4 GPUs are visible"),
        (World(forced_cpu=True), 0, "--cpu (or use_cpu: true) makes Accelerate start one"),
        (World(slurm_tasks=2), 0, "SLURM started 2 tasks"),
        (World(unheeded_processes=2), 0, "`accelerate launch` was to start 2 ("),
        (World(unheeded_processes=0), 0, "`accelerate launch` was to start several ("),
        (World(stray_world_size=8), 0, "WORLD_SIZE=8 is set, but no RANK"),
        (DDP, 4, ""),
    ],
)
def test_one_process_that_was_probably_meant_to_be_more(
    world: World, num_gpus: int, reason: str
) -> None:
    assert reason in single_process_reason(world, num_gpus)
    assert bool(single_process_reason(world, num_gpus)) == bool(reason)


def engine_file(directory: Path, **settings: Any) -> World:
    file = directory / "engine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, **settings}))
    return World(
        launched=True, world_size=2, deepspeed=True, zero_stage=2, deepspeed_file=str(file)
    )


def test_deepspeed_gets_the_batch_arithmetic_of_the_run(tmp_path: Path) -> None:
    world = engine_file(tmp_path, train_micro_batch_size_per_gpu="auto", gradient_clipping=1.0)
    settings = deepspeed_settings(world, precision="bf16", plan=PLAN, clip_norm=1.0)
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["train_batch_size"] == 16
    assert settings["gradient_clipping"] == 1.0
    assert settings["torch_autocast"]["enabled"] is True
    assert "bf16" not in settings  # it would cast BatchNorm's parameters and not its statistics


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4, but the run has 2"),
        ({"train_micro_batch_size_per_gpu": 8}, "but the run has 4"),
        ({"train_batch_size": 64}, "but the run has 16"),
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5, but the run has 1.0"),
        ({"optimizer": {"type": "Adam"}}, "a section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "a section 'scheduler'"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer.device=cpu",
        ),
    ],
)
def test_an_engine_file_that_contradicts_the_run_is_refused(
    tmp_path: Path, content: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        deepspeed_settings(
            engine_file(tmp_path, **content), precision="no", plan=PLAN, clip_norm=1.0
        )


def test_all_contradictions_are_told_together(tmp_path: Path) -> None:
    world = engine_file(tmp_path, gradient_accumulation_steps=4, optimizer={})
    with pytest.raises(UserError) as raised:
        deepspeed_settings(world, precision="no", plan=PLAN, clip_norm=None)
    assert "gradient_accumulation_steps=4" in str(raised.value)
    assert "a section 'optimizer'" in str(raised.value)


def test_fp16_of_an_engine_file_is_told_with_all_else(tmp_path: Path) -> None:
    world = engine_file(
        tmp_path, fp16={"enabled": True}, train_batch_size=64, optimizer={}, gradient_clipping=2
    )
    batch = ["train.global_batch_size=16", "train.micro_batch_size=4", "optim.clip_norm=1.0"]
    with pytest.raises(UserError) as raised:
        engine.check_device(load_config(None, batch), world)
    said = str(raised.value).splitlines()
    assert said[0].endswith("engine.json: 4 problems")
    assert "1. it contains fp16, which mmsa does not support under DeepSpeed (use bf16)" in said[1]
    assert "train_batch_size=64, but the run has 16 (train.global_batch_size)" in said[2]
    assert "gradient_clipping=2, but the run has 1.0" in said[3]
    assert "a section 'optimizer'" in said[4]
    # The run's own word stands above the file's; a batch that does not divide is told elsewhere.
    (tmp_path / "other").mkdir()
    fits = engine_file(tmp_path / "other", fp16={"enabled": True}, gradient_accumulation_steps=3)
    odd = ["train.mixed_precision=bf16", "train.global_batch_size=12", "train.micro_batch_size=5"]
    engine.check_device(load_config(None, odd), fits)


@pytest.mark.parametrize("trained", [True, False])
def test_single_numbers_are_refused_under_deepspeed(trained: bool) -> None:
    model = torch.nn.Linear(2, 2)
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0), requires_grad=trained))
    check_taken_by_engine(model, DDP)
    with pytest.raises(UserError, match="scale of this model are single numbers"):
        check_taken_by_engine(model, ZERO2)
    check_taken_by_engine(torch.nn.Linear(2, 2), ZERO2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "is not valid JSON"),
        ('{"zero_optimization": {"stage": 5}}', "stage=5; expected 0, 1, 2 or 3"),
        ("[]", "stage=None"),
        ('{"zero_optimization": 2}', "stage=None"),
    ],
)
def test_an_engine_file_that_is_none(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "engine.json"
    if text is not None:
        file.write_text(text)
    world = World(launched=True, deepspeed=True, deepspeed_file=str(file))
    with pytest.raises(UserError, match=told):
        engine.check_launch(launch(), world)


@pytest.mark.parametrize(
    ("content", "precision"),
    [
        ({}, None),
        ({"bf16": {"enabled": "auto"}}, None),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "torch.float16"}}, "fp16"),
        ({"torch_autocast": {"enabled": False}}, None),
    ],
)
def test_the_precision_that_an_engine_file_asks_for(
    tmp_path: Path, content: dict[str, Any], precision: str | None
) -> None:
    assert file_precision(engine_file(tmp_path, **content)) == precision


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "no")])
def test_the_hardware_decides_where_nobody_has_said_a_precision(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(engine, "has_bf16", lambda: has_bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert engine.precision_of_launch(None, world_from_environment()) == expected
    assert engine.precision_of_launch("no", world_from_environment()) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert engine.precision_of_launch(None, world_from_environment()) == "no"


def test_this_processor_is_asked_for_bf16() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if hardware.device_type() != "cpu" or "flags" not in flags:
        pytest.skip("asks an x86 processor under Linux")
    assert hardware.has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_fp16_is_refused_under_deepspeed_and_on_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 is not supported under DeepSpeed"):
        engine.precision_of_launch(None, engine_file(tmp_path, fp16={"enabled": True}))
    config = load_config(None, ["train.mixed_precision=fp16"])
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        engine.check_device(config, DDP)


def test_what_this_device_or_engine_cannot_run_is_refused() -> None:
    sync = load_config(None, ["model.image_encoder.batch_norm=sync"])
    with pytest.raises(UserError, match="SyncBatchNorm does not run on CPU"):
        engine.check_device(sync, DDP)
    compiled = load_config(None, ["train.compile=true"])
    zero3 = World(launched=True, deepspeed=True, zero_stage=3)
    with pytest.raises(UserError, match="does not work with ZeRO-3"):
        engine.check_device(compiled, zero3)
    engine.check_device(compiled, ZERO2)
    halved = load_config(None, ["train.communication=bf16"])
    with pytest.raises(UserError, match="communication=bf16 does not work with ZeRO-3"):
        engine.check_device(halved, zero3)
    engine.check_device(halved, ZERO2)


def test_generators_of_the_own_gpu_alone_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.own_gpus(torch.device("cuda:3")) == [3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # of the machine
    own = hardware.own_gpus(torch.device("cpu"))
    with warnings.catch_warnings(), torch.random.fork_rng(own):
        warnings.simplefilter("error")  # as without devices


def test_bf16_between_ranks_reaches_deepspeed(tmp_path: Path) -> None:
    given = {"precision": "bf16", "plan": PLAN, "clip_norm": 1.0}
    usual = deepspeed_settings(engine_file(tmp_path), **given)  # type: ignore[arg-type]
    assert usual["torch_autocast"]["lower_precision_safe_modules"] == []
    assert "communication_data_type" not in usual
    bf16 = deepspeed_settings(engine_file(tmp_path), **given, communication="bf16")  # type: ignore[arg-type]
    assert bf16["communication_data_type"] == "bf16"
    assert "lower_precision_safe_modules" not in bf16["torch_autocast"]


def test_every_launch_file_names_what_it_is_called() -> None:
    import yaml

    root = Path(__file__).resolve().parent.parent.parent
    files = sorted((root / "launch" / "accelerate").glob("*.yaml"))
    assert [file.stem for file in files] == [
        *["ddp", "ddp_cpu", "two_nodes", "zero1", "zero2", "zero3"]
    ]
    for file in files:
        content = yaml.safe_load(file.read_text())
        assert content["use_cpu"] is False, file
        if file.stem.startswith("zero"):
            assert content["distributed_type"] == "DEEPSPEED"
            assert "mixed_precision" not in content  # Accelerate refuses it beside an engine file
            engine_settings = root / content["deepspeed_config"]["deepspeed_config_file"]
            stage = json.loads(engine_settings.read_text())["zero_optimization"]["stage"]
            assert f"zero{stage}" == file.stem
        else:
            assert content["distributed_type"] == "MULTI_GPU"
