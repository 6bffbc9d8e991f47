"""DeepSpeed as Accelerate starts it: imported and prepared only where a launch uses it."""

from __future__ import annotations

import logging
from typing import Any

from mmsa.data.plan import BatchPlan
from mmsa.engines.deepspeed_settings import deepspeed_settings
from mmsa.process import runtime
from mmsa.process.runtime import World


def deepspeed_plugin(
    world: World,
    precision: str,
    plan: BatchPlan,
    clip_norm: float | None,
    on_cpu: bool,
    communication: str,
) -> Any:
    """Accelerate's plugin with the settings of this run; see `deepspeed_settings` for errors."""
    settings = deepspeed_settings(
        world, precision=precision, plan=plan, clip_norm=clip_norm, communication=communication
    )
    runtime.prepare_deepspeed(on_cpu=on_cpu)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    if on_cpu:
        # Its all-reduce through shared memory for CPU ranks needs a compiler at the first start
        # (half a minute), and a killed rank leaves files in /dev/shm. gloo does the same work. Not
        # on a GPU: looking at this table tries the compiler for each of DeepSpeed's operators.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return DeepSpeedPlugin(
        hf_ds_config=settings,
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        gradient_clipping=settings["gradient_clipping"],
        zero_stage=settings["zero_optimization"]["stage"],
        zero3_init_flag=False,  # the model is built before the engine, with weights that were read
    )
