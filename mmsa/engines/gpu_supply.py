"""What keeps a GPU supplied: loader processes by the cores a rank has, and batches worth a launch.

Pure arithmetic on what the process was given; said at the start of a run, as batches are.
"""

from __future__ import annotations

import os
from typing import Literal

from mmsa.config import Config
from mmsa.data.plan import BatchPlan
from mmsa.engines.hardware import device_type
from mmsa.process.runtime import World

ON_CPU = 2  # loader processes where the rank itself needs the cores
FEWEST, MOST = 2, 12
OWN_CORES = 2  # of a rank with a GPU: its main thread, and the thread that copies batches
ENOUGH_CORES = 4  # a GPU; with fewer it waits for decoded images
# One sample is read and decoded in 0.53 ms of a core (docs/benchmarks.md, the loader).
SAMPLES_PER_S = 1900
# Below this many samples in a forward pass launching kernels takes longer than most of them run.
ENOUGH_SAMPLES = 64


# Before Accelerate may bind this rank to the cores next to its GPU, which other ranks share.
CORES_AT_START = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)


def cores_of_a_rank(world: World) -> int:
    """Cores that this process may use, divided among the ranks of its machine; at least 1."""
    return max(1, CORES_AT_START // world.local_world_size)


def loader_workers(setting: int | Literal["auto"], world: World) -> int:
    """The loader processes of this rank for `data.num_workers`."""
    if setting != "auto":
        return setting
    if device_type() == "cpu":
        return ON_CPU
    return min(max(cores_of_a_rank(world) - OWN_CORES, FEWEST), MOST)


def supply_in_words(config: Config, world: World) -> str:
    """Cores and loader processes of a rank with a GPU, as one line of the log."""
    cores, workers = cores_of_a_rank(world), loader_workers(config.data.num_workers, world)
    return (
        f"{cores} core(s) and {workers} loader process(es) for this GPU, about "
        f"{max(1, min(workers, cores)) * SAMPLES_PER_S:,} samples/s"
    )


def supply_warnings(config: Config, plan: BatchPlan, world: World) -> list[str]:
    """What of the settings would leave a GPU idle, and what to set instead."""
    warnings = []
    cores, workers = cores_of_a_rank(world), loader_workers(config.data.num_workers, world)
    if cores < ENOUGH_CORES:
        warnings.append(
            f"this rank has {cores} core(s) for its GPU; with fewer than {ENOUGH_CORES} the GPU "
            "waits for images. Request 8 to 12 a GPU (--cpus-per-task of a job is per node)"
        )
    elif workers < min(cores - OWN_CORES, FEWEST + 2):
        warnings.append(
            f"{workers} loader process(es) use few of the {cores} cores of this rank; "
            "data.num_workers=auto uses them"
        )
    micro, share = plan.micro_batch_size, plan.micro_batch_size * plan.accumulation_steps
    if micro < min(share, ENOUGH_SAMPLES):
        largest = max(size for size in range(micro, share + 1) if share % size == 0 and size <= 256)
        if largest > micro:
            warnings.append(
                f"micro-batches of {micro} leave a GPU mostly idle; train.micro_batch_size="
                f"{largest} computes the same global batch in fewer passes (BatchNorm in training "
                f"then normalises by {largest} samples)"
            )
    return warnings
