"""What DeepSpeed is told: the launch's engine file, completed by the run's configuration.

Pure but for reading the file: every rank finds the same problems before the process group is made.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mmsa.data.plan import BatchPlan
from mmsa.errors import UserError, one_or_many
from mmsa.runtime import World

# What the run's configuration decides; an engine file may say "auto", the same, or nothing.
_OURS = {"optimizer": "optim.*", "scheduler": "optim.schedule"}


def deepspeed_settings(
    world: World, *, precision: str, plan: BatchPlan, clip_norm: float | None
) -> dict[str, Any]:
    """The dictionary that DeepSpeed is started with.

    The engine file (or the `deepspeed_config` of the Accelerate file) gives the stage and its
    buffers; batch arithmetic, clipping and precision come from the run's configuration. Raises
    `UserError` with every contradiction between the two.
    """
    settings = copy.deepcopy(_read(world))
    filled = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.micro_batch_size * plan.accumulation_steps * plan.world_size,
        "gradient_clipping": clip_norm or 0.0,
    }
    names = {
        "train_micro_batch_size_per_gpu": "train.micro_batch_size",
        "gradient_accumulation_steps": "global / (micro x world)",
        "train_batch_size": "train.global_batch_size",
        "gradient_clipping": "optim.clip_norm",
    }
    problems = [
        f"{key}={settings[key]!r}, but the run has {value!r} ({names[key]})"
        for key, value in filled.items()
        if settings.get(key, "auto") not in ("auto", value)
    ]
    if world.accumulation_steps not in (None, 1, plan.accumulation_steps):
        problems.append(
            f"gradient_accumulation_steps={world.accumulation_steps}, but the run has "
            f"{plan.accumulation_steps} ({names['gradient_accumulation_steps']})"
        )
    problems += [
        f"a section '{section}', which is set by {ours} of the run's configuration"
        for section, ours in _OURS.items()
        if section in settings
    ]
    problems += _offload_problems(world, settings)
    if problems:
        raise UserError(
            one_or_many(
                [f"it holds {problem}; write auto, or take it out" for problem in problems],
                where=f"the engine file {world.deepspeed_file or 'of the launch'}",
            )
        )
    for kind in ("bf16", "fp16", "amp"):
        settings.pop(kind, None)  # `precision` was read from them
    settings |= filled
    settings["steps_per_print"] = 2**31  # our tracker speaks
    settings["zero_allow_untested_optimizer"] = True
    settings["torch_autocast"] = {
        "enabled": precision == "bf16",
        "dtype": "bfloat16",
        # None: gradients and weights travel in float32, as with DDP.
        "lower_precision_safe_modules": [],
    }
    return settings


def file_precision(world: World) -> str | None:
    """The precision that the engine file asks for; None where it asks for none."""
    settings = _read(world)
    for name in ("fp16", "bf16"):
        if (settings.get(name) or {}).get("enabled") is True:
            return name
    autocast = settings.get("torch_autocast") or {}
    if autocast.get("enabled") is True:
        return "fp16" if str(autocast.get("dtype")).split(".")[-1] == "float16" else "bf16"
    return None


def _read(world: World) -> dict[str, Any]:
    file = world.deepspeed_file
    if file is None:
        return {"zero_optimization": {"stage": world.zero_stage}}
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the engine file {file} cannot be read ({error.strerror}). A relative "
            "deepspeed_config_file is looked up where you launch; complete ones are in "
            "launch/deepspeed/"
        ) from None
    except ValueError as error:
        raise UserError(f"the engine file {file} is no valid JSON: {error}") from None
    stage = settings.get("zero_optimization", {}).get("stage") if _is_dict(settings) else None
    if stage not in (0, 1, 2, 3):
        raise UserError(
            f"the engine file {file} has zero_optimization.stage={stage!r}; expected 0, 1, 2 or 3, "
            "as in launch/deepspeed/zero2.json"
        )
    return dict(settings)


def _is_dict(settings: Any) -> bool:
    return isinstance(settings, dict) and isinstance(settings.get("zero_optimization", {}), dict)


def _offload_problems(world: World, settings: dict[str, Any]) -> list[str]:
    zero = settings["zero_optimization"]
    found = {
        key: (zero.get(key) or {}).get("device", "none")
        for key in ("offload_optimizer", "offload_param")
    }
    if world.deepspeed_file is None:
        found["offload_optimizer"] = world.offload_optimizer
        found["offload_param"] = world.offload_param
    return [
        f"{key}.device={device}, which mmsa does not run"
        for key, device in found.items()
        if device != "none"
    ]
