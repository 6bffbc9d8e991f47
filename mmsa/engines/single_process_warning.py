"""A warning for one process where several were probably meant: copies would train separately."""

from __future__ import annotations

import logging

from mmsa.process.runtime import World

logger = logging.getLogger("mmsa")


def single_process_reason(world: World, num_gpus: int) -> str:
    """Why a world of one process looks like a mistake; empty if it does not."""
    if world.world_size > 1:
        return ""
    if world.forced_cpu and not world.launched:
        return "--cpu (or use_cpu: true) makes Accelerate start one, whatever --num_processes says"
    if world.unheeded_processes != 1:
        asked = world.unheeded_processes or "several"
        return f"`accelerate launch` was to start {asked} (without --config_file it does not)"
    if world.slurm_tasks > 1:
        return f"SLURM started {world.slurm_tasks} tasks (SLURM_NTASKS)"
    if world.stray_world_size > 1:
        return f"WORLD_SIZE={world.stray_world_size} is set, but no RANK"
    if num_gpus > 1:
        return f"{num_gpus} GPUs are visible"
    return ""


def warn_if_single_process(world: World) -> None:
    """Warn, so that nobody overlooks it, of one process where several were probably meant."""
    import torch

    reason = single_process_reason(world, torch.cuda.device_count())
    if not reason:
        return
    lines = (
        f"ONE PROCESS TRAINS ALONE, although {reason}.",
        "Any further copy of this command would train separately on the same data.",
        "Launch with: python -m launch run -n N CONFIG ...",
        "or with: accelerate launch --config_file accelerate_config.yaml --num_processes N ...",
        "or confirm that you mean one process: launch.world_size=1",
    )
    for line in ("=" * 88, *lines, "=" * 88):
        logger.warning(line)
