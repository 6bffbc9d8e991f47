"""A step whose gradient is not finite never reaches the weights, on any engine.

The pretrained weights have one token whose embedding is infinite: exactly the steps whose samples
contain it have a loss that is not finite.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from harness import TINY, metric_lines, status
from launches import Launch, checkpoint_steps, launcher
from safetensors.torch import load_file, save_file
from torch import nn

from mmsa.config import OptimConfig
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.text import load_tokenizer
from mmsa.errors import AgreedError
from mmsa.export import seal_export
from mmsa.labels import class_map
from mmsa.training.nonfinite_guard import NonfiniteGuard
from mmsa.training.optim import build_optimizer
from mmsa.training.step_reports import StepReport
from train import main as train_main

EMBEDDING = "text_encoder.body.embeddings.word_embeddings.weight"
STEPS = 10  # one epoch


def texts(shards: Path, split: str) -> dict[str, str]:
    manifest = load_manifest(shards)
    reader = SplitReader(str(shards), manifest, split, class_map(manifest.classes, None))
    samples = [reader.read(*place) for place in reader.places()]
    return {sample.key: sample.text for sample in samples}


@pytest.fixture(scope="module")
def poisoned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """An export, the token with an infinite embedding in it, and the sample that contains it."""
    run_dir = tmp_path_factory.mktemp("runs") / "source"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=1"]
    assert train_main(settings) == 0
    export = run_dir.with_name("poisoned")
    shutil.copytree(run_dir / "best", export)
    tokenizer = load_tokenizer(str(export / "tokenizer"), 32)
    holders: dict[int, set[str]] = {}
    for split in ("train", "val"):
        for key, text in texts(shards, split).items():
            ids, mask = tokenizer([text])
            for token in ids[0][mask[0].bool()].tolist():
                holders.setdefault(token, set()).add(key)
    rare = {token: keys for token, keys in holders.items() if len(keys) == 1}
    in_training = set(texts(shards, "train"))
    token, keys = next((t, k) for t, k in sorted(rare.items()) if k <= in_training)
    weights = load_file(export / "model.safetensors")
    weights[EMBEDDING][token, 0] = float("inf")
    save_file(weights, export / "model.safetensors")
    seal_export(export)
    return export, token, keys.pop()


def settings_of(shards: Path, export: Path) -> list[str]:
    return [
        *[f"data.shards={shards}", f"model.text_encoder.weights={export}"],
        *["model.text_encoder.config=null", "run.audit=true", "data.drop_last=false"],
        *[
            f"train.max_steps={STEPS}",
            "train.checkpoint_every_steps=1",
            "train.keep_checkpoints=99",
        ],
    ]


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_such_a_step_is_skipped_on_every_engine(
    poisoned: tuple[Path, int, str], shards: Path, tmp_path: Path, engine: str
) -> None:
    export, token, key = poisoned
    settings = [*settings_of(shards, export), "train.on_nonfinite=skip", f"launch.engine={engine}"]
    launch = Launch(tmp_path / "run", *settings, "launch.world_size=2", by=launcher(engine))
    assert launch.wait() == 0, launch.output()
    (skipped,) = metric_lines(launch.run_dir, "skipped")
    step = skipped["step"]
    assert key in skipped["keys"]
    assert len(skipped["keys"]) == len(set(skipped["keys"])) == 16  # the global batch
    assert f"step {step} has not changed the weights: loss nan" in launch.own_log()
    steps = [line["step"] for line in metric_lines(launch.run_dir, "train")]
    assert steps == [other for other in range(1, STEPS + 2) if other not in (step, STEPS + 1)]
    folder = launch.run_dir / "checkpoints"
    assert 1 < step < STEPS
    before, after, next_one, last = (
        load_file(folder / f"step-{number:08d}" / "export" / "model.safetensors")
        for number in (step - 1, step, step + 1, STEPS)
    )
    assert any((tensor != after[name]).any() for name, tensor in next_one.items())
    for name, tensor in after.items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name
    last[EMBEDDING][token] = 0.0
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_a_run_stops_with_step_and_keys_and_its_last_checkpoint_is_good(
    poisoned: tuple[Path, int, str], shards: Path, tmp_path: Path
) -> None:
    export, token, key = poisoned
    launch = Launch(tmp_path / "run", *settings_of(shards, export), by=launcher())
    assert launch.wait() == 1
    told = status(launch.run_dir)
    (skipped,) = metric_lines(launch.run_dir, "skipped")
    step = skipped["step"]
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert told["reason"].startswith(f"step {step} has loss nan and gradient norm ")
    assert key in skipped["keys"]
    assert f"{' '.join(skipped['keys'][:5])} and 11 more (metrics.jsonl)" in told["reason"]
    assert f"Newest checkpoint: step-{step - 1:08d}." in told["reason"]
    assert launch.output().count("error: step") == 1  # two ranks
    assert checkpoint_steps(launch.run_dir)[-1] == step - 1
    folder = launch.run_dir / "checkpoints" / f"step-{step - 1:08d}"
    weights = load_file(folder / "export" / "model.safetensors")
    weights[EMBEDDING][token] = 0.0
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_learning_rate_beyond_all_bounds_ends_the_run(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "optim.text_lr=1e30"]
    assert train_main(settings) == 2
    told = status(run_dir)
    assert told["state"] == "failed"
    assert told["reason"].startswith(
        "step 2 has loss nan"
    )  # step 1 was finite and changed the weights
    assert [line["step"] for line in metric_lines(run_dir, "train")] == [1]


def test_skipped_steps_are_counted_while_they_follow_each_other(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer({"head": list(model.named_parameters())}, OptimConfig())
    guard = NonfiniteGuard(optimizer, model, Accelerator(cpu=True), on_nonfinite="skip")

    def report(step: int) -> StepReport:
        return StepReport(step, {}, [], loss=math.nan, grad_norm=math.inf, nonfinite=True)

    for step in (*range(1, 50), *range(60, 109)):  # 49 in a row, twice
        guard.count_skipped(report(step), list("abcdefg"), tmp_path)
    with pytest.raises(AgreedError) as ended:
        guard.count_skipped(report(109), list("abcdefg"), tmp_path)
    assert str(ended.value).startswith(
        "step 109 has loss nan and gradient norm inf, the 50th such step in a row; it has not "
        "changed the weights. Newest checkpoint: none yet. Its samples: a b c d e and 2 more"
    )
    ends = NonfiniteGuard(optimizer, model, Accelerator(cpu=True), on_nonfinite="stop")
    with pytest.raises(AgreedError, match="step 3 has loss nan and gradient norm inf; it has not"):
        ends.count_skipped(report(3), ["a"], tmp_path)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_optimizer_leaves_everything_as_it_is(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    named = list(model.named_parameters())
    optimizer = build_optimizer({"head": named}, OptimConfig(name=name))  # type: ignore[arg-type]
    guard = NonfiniteGuard(optimizer, model, Accelerator(cpu=True), on_nonfinite="skip")

    def step(value: float) -> bool:
        guard.begin_step()
        model(torch.tensor([[1.0, 2.0, 3.0], [value, 5.0, 6.0]])).sum().backward()
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, value)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skipped = bool(guard.skip_if_nonfinite(norm))
        optimizer.step()
        return skipped

    def everything() -> list[bytes]:
        state = [value for parameter in optimizer.state.values() for value in parameter.values()]
        tensors = [*model.state_dict().values(), *state]
        return [tensor.detach().numpy().tobytes() for tensor in tensors]

    assert step(4.0) is False
    before = everything()
    for value in (float("nan"), float("inf"), -float("inf")):
        assert step(value) is True
        assert everything() == before
    assert step(4.0) is False
    assert everything() != before


def test_a_step_that_a_scaler_skips_leaves_everything_as_it_is() -> None:
    """As under fp16, whose GradScaler skips such steps by itself."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = build_optimizer({"head": list(model.named_parameters())}, OptimConfig())
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu")
    guard = NonfiniteGuard(optimizer, model, accelerator, on_nonfinite="skip")

    def step(value: float) -> list[bytes]:
        guard.begin_step()
        output = model(torch.tensor([[1.0, 2.0, 3.0], [value, 5.0, 6.0]]))
        scaler.scale(output.square().sum()).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert not guard.skip_if_nonfinite(norm)  # the scale may be to blame
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]

    before = step(4.0)
    assert step(float("inf")) == before
    assert step(float("nan")) == before
    assert step(4.0) != before
    assert scaler.get_scale() == 2.0**14  # halved twice
