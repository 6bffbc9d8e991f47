"""The process and its world: launch facts, the Accelerator, seeds, logging.

The only reader and writer of environment variables.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.config import LaunchConfig
from mmsa.errors import UserError
from mmsa.launcher import end_with_launcher

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("mmsa")


@dataclass(frozen=True)
class World:
    """What the launcher said of this process, known before any process group is made."""

    rank: int
    world_size: int
    local_rank: int
    launched: bool
    deepspeed: bool

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0


def world_from_environment() -> World:
    """Read what `accelerate launch` and torchrun set; nothing set is world size 1."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        launched="RANK" in os.environ,
        deepspeed=os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true",
    )


def launcher_grace_s() -> float:
    """Seconds that a launcher leaves its ranks between SIGTERM and SIGKILL.

    `torch/distributed/launcher/api.py`: 30 but for this variable, which torch reads since 2.12.
    """
    text = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    return float(text) if text.isdecimal() else 30.0


def prepare_process() -> None:
    """Settings that must stand before libraries start threads."""
    end_with_launcher()
    # Loader workers are started beside a parent that has tokenized: Rust threads do not survive.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait take a busy machine's cores from each other: ten times
    # slower was measured with two threads on two cores that did other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check_launch(expected: LaunchConfig, world: World) -> None:
    """Raise `UserError` where the launch is not the one that the configuration expects."""
    if expected.world_size != "any" and expected.world_size != world.world_size:
        raise UserError(
            f"launch.world_size={expected.world_size}, but this launch has {world.world_size} "
            f"process(es); launch with: accelerate launch --num_processes {expected.world_size} ..."
        )
    if expected.engine == "ddp" and not world.launched:
        raise UserError(
            "launch.engine=ddp, but this process was started without a launcher; launch with: "
            "accelerate launch --config_file accelerate_config.yaml --num_processes N ..."
        )
    if world.deepspeed or expected.engine.startswith("zero"):
        raise UserError(
            "this version trains with DDP alone; launch with an Accelerate configuration whose "
            "distributed_type is MULTI_GPU, and launch.engine=any or ddp"
        )


def make_accelerator(
    mixed_precision: str | None,
    accumulation_steps: int = 1,
    *,
    collective_timeout_s: float = 1800.0,
) -> Accelerator:
    """The Accelerator on all GPUs of the launch, or on CPU processes where there is no GPU.

    `mixed_precision` None takes the launcher's. A rank that lets a collective wait for longer than
    `collective_timeout_s` is taken for hanging: its peers end. Raises `UserError` where the world
    that came up is not the one that the launcher spoke of (two unconnected copies, say).
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Its successor `forward_sync_buffers` is not in the older torch versions that we admit.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    world = world_from_environment()
    on_cpu = not torch.cuda.is_available()
    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "fp16" and on_cpu:
        raise UserError("mixed precision fp16 needs a GPU; on CPU use bf16 or no")
    accelerator = Accelerator(
        # Under a launcher without GPUs this gives a gloo world; without it, ranks that do not know
        # of each other, silently.
        cpu=on_cpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=accumulation_steps,
        # Each rank keeps its own BatchNorm statistics; they are averaged where they are used.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=collective_timeout_s)),
        ],
    )
    if accelerator.num_processes != world.world_size:
        raise UserError(
            f"the launcher speaks of {world.world_size} processes, Accelerate came up with "
            f"{accelerator.num_processes}; launch with: accelerate launch --config_file "
            "accelerate_config.yaml --num_processes N ..."
        )
    return accelerator


def engine_name(accelerator: Accelerator) -> str:
    """The engine as it really is: single, ddp, or zero0 to zero3."""
    kind = str(accelerator.distributed_type.value)
    if kind == "DEEPSPEED":
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return "ddp" if accelerator.use_distributed else "single"


def launch_facts(accelerator: Accelerator) -> dict[str, Any]:
    """Engine, world, backend, device and precision as they really are."""
    import torch

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    on_gpu = accelerator.device.type == "cuda"
    return {
        "engine": engine_name(accelerator),
        "world_size": accelerator.num_processes,
        "backend": torch.distributed.get_backend() if distributed else "none",
        "device": torch.cuda.get_device_name() if on_gpu else accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "threads_per_process": torch.get_num_threads(),
    }


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one optimizer step of one rank; it runs on through the micro-steps."""
    import torch

    from mmsa.data.plan import stream_key

    torch.manual_seed(stream_key("dropout", seed, step, rank) >> 1)


def make_deterministic() -> None:
    """Deterministic CUDA algorithms: `run.deterministic`. Slower; CPU runs are so anyway."""
    import torch

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def set_up_logging(world: World, log_file: Path | None) -> None:
    """The main rank logs to standard output and `log_file`; the others warnings alone."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main_process else logging.WARNING)
    prefix = "" if world.is_main_process else f"[rank {world.rank}] "
    to_screen = logging.StreamHandler(sys.stdout)
    to_screen.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    logger.addHandler(to_screen)
    if log_file is not None and world.is_main_process:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            to_file = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{log_file.parent} cannot be a run directory ({error.strerror}); give another "
                "run.dir"
            ) from None
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(to_file)
