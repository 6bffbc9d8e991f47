"""DeepSpeed's settings: the engine file of the launch, completed by the run's configuration.

Pure except for reading the file: every rank finds the same problems, before the process group
exists.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mmsa.config import Config
from mmsa.data.plan import BatchPlan
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.parsing import parse_json
from mmsa.process.runtime import World

# What the run's configuration decides; an engine file may say "auto", the same, or nothing.
_ACCUMULATION = "gradient_accumulation_steps"
_OURS = {"optimizer": "optim.*", "scheduler": "optim.schedule"}


def deepspeed_settings(
    world: World,
    *,
    precision: str,
    plan: BatchPlan,
    clip_norm: float | None,
    communication: str = "float32",
) -> dict[str, Any]:
    """The dictionary that DeepSpeed is started with.

    The engine file (or the `deepspeed_config` of the Accelerate file) gives the stage and its
    buffers; batch arithmetic, clipping and precision come from the run's configuration. Raises
    `UserError` with every contradiction between the two.
    """
    settings = copy.deepcopy(_read(world))
    ours = _ours(plan.micro_batch_size, plan.global_batch_size, plan.accumulation_steps, clip_norm)
    _refuse(world, _contradictions(world, settings, ours))
    for kind in ("bf16", "fp16", "amp"):
        settings.pop(kind, None)  # `precision` was read from them
    settings |= {key: value for key, (value, _) in ours.items()}
    settings["steps_per_print"] = 2**31  # our tracker reports
    settings["zero_allow_untested_optimizer"] = True
    settings["torch_autocast"] = {
        "enabled": precision == "bf16",
        "dtype": "bfloat16",
        # Of no module: gradients and weights travel in float32, as with DDP.
        "lower_precision_safe_modules": [],
    }
    if communication == "bf16":
        settings["communication_data_type"] = "bf16"  # which its autocast does not read
        del settings["torch_autocast"]["lower_precision_safe_modules"]  # its own list
    return settings


def check_engine_file(world: World, config: Config) -> None:
    """Raise `UserError` with everything that a DeepSpeed launch's engine file must not contain.

    Before any data is read: what `deepspeed_settings` would find later, and fp16.
    """
    if not world.deepspeed:
        return
    train = config.train
    accumulation, rest = divmod(
        train.global_batch_size, train.micro_batch_size * world.world_size
    )  # with a rest the run is refused by its batch arithmetic
    ours = _ours(
        train.micro_batch_size,
        train.global_batch_size,
        None if rest else accumulation,
        config.optim.clip_norm,
    )
    problems = []
    if train.mixed_precision is None and file_precision(world) == "fp16":
        problems.append("fp16, which mmsa does not support under DeepSpeed (use bf16)")
    _refuse(world, problems + _contradictions(world, _read(world), ours))


def _ours(
    micro_batch_size: int,
    global_batch_size: int,
    accumulation_steps: int | None,
    clip_norm: float | None,
) -> dict[str, tuple[Any, str]]:
    """DeepSpeed's key -> (what the run has, where it is set); unknown values are left out."""
    ours: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (micro_batch_size, "train.micro_batch_size"),
        _ACCUMULATION: (accumulation_steps, "global / (micro x world)"),
        "train_batch_size": (global_batch_size, "train.global_batch_size"),
        "gradient_clipping": (clip_norm or 0.0, "optim.clip_norm"),
    }
    return {key: pair for key, pair in ours.items() if pair[0] is not None}


def _contradictions(
    world: World, settings: Mapping[str, Any], ours: Mapping[str, tuple[Any, str]]
) -> list[str]:
    said = [(key, settings.get(key, "auto")) for key in ours]
    if world.accumulation_steps not in (None, 1) and _ACCUMULATION in ours:
        said.append((_ACCUMULATION, world.accumulation_steps))  # Accelerate's default is 1
    problems = [
        f"{key}={value!r}, but the run has {ours[key][0]!r} ({ours[key][1]})"
        for key, value in said
        if value not in ("auto", ours[key][0])
    ]
    problems += [
        f"a section '{section}', which is set by {setting} of the run's configuration"
        for section, setting in _OURS.items()
        if section in settings
    ]
    return problems + _offload_problems(world, settings)


def _refuse(world: World, problems: list[str]) -> None:
    if problems:
        raise UserError(
            one_or_many(
                [f"it contains {problem}; write auto, or remove it" for problem in problems],
                where=f"the engine file {world.deepspeed_file or 'of the launch'}",
            )
        )


def file_precision(world: World) -> str | None:
    """The precision that the engine file sets; None where it sets none."""
    settings = _read(world)
    for name in ("fp16", "bf16"):
        if (settings.get(name) or {}).get("enabled") is True:
            return name
    autocast = settings.get("torch_autocast") or {}
    if autocast.get("enabled") is True:
        return "fp16" if str(autocast.get("dtype")).split(".")[-1] == "float16" else "bf16"
    return None


@cache  # every check of a launch reads it
def _read(world: World) -> dict[str, Any]:
    file = world.deepspeed_file
    if file is None:
        return {"zero_optimization": {"stage": world.zero_stage}}
    try:
        settings = parse_json(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the engine file {file} cannot be read ({error.strerror}). A relative "
            "deepspeed_config_file is looked up from the directory you launch in; complete files "
            "are in launch/deepspeed/"
        ) from None
    except ValueError as error:
        raise UserError(f"the engine file {file} is not valid JSON: {error}") from None
    stage = settings.get("zero_optimization", {}).get("stage") if _is_dict(settings) else None
    if stage not in (0, 1, 2, 3):
        raise UserError(
            f"the engine file {file} has zero_optimization.stage={stage!r}; expected 0, 1, 2 or 3, "
            "as in launch/deepspeed/zero2.json"
        )
    return dict(settings)


def _is_dict(settings: Any) -> bool:
    return isinstance(settings, dict) and isinstance(settings.get("zero_optimization", {}), dict)


def _offload_problems(world: World, settings: Mapping[str, Any]) -> list[str]:
    zero = settings["zero_optimization"]
    found = {
        key: (zero.get(key) or {}).get("device", "none")
        for key in ("offload_optimizer", "offload_param")
    }
    if world.deepspeed_file is None:
        found["offload_optimizer"] = world.offload_optimizer
        found["offload_param"] = world.offload_param
    return [
        f"{key}.device={device}, which mmsa does not support"
        for key, device in found.items()
        if device != "none"
    ]
