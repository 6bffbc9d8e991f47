"""The process and its world: launch facts, the Accelerator, seeds, logging, endings, `status.json`.

The only reader and writer of environment variables.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.config import LaunchConfig
from mmsa.errors import EXIT_USER_ERROR, ShardDamage, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("mmsa")

_SETTLES_S = 0.5  # how long a failing rank looks after its word in status.json
_FILES_OF_PEERS_S = 3.0  # how long a rank waits for the main rank's word before speaking itself


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


def prepare_process() -> None:
    """Settings that must stand before libraries start threads."""
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


def make_accelerator(mixed_precision: str | None, accumulation_steps: int = 1) -> Accelerator:
    """The Accelerator on all GPUs of the launch, or on CPU processes where there is no GPU.

    `mixed_precision` None takes the launcher's. Raises `UserError` where the world that came up is
    not the one that the launcher spoke of (two unconnected copies, say).
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

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
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes != world.world_size:
        raise UserError(
            f"the launcher speaks of {world.world_size} processes, Accelerate came up with "
            f"{accelerator.num_processes}; launch with: accelerate launch --config_file "
            "accelerate_config.yaml --num_processes N ..."
        )
    return accelerator


def device_type() -> str:
    """cuda or cpu: what `make_accelerator` will compute on, known before it is made."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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


@dataclass
class Command:
    """One command of a launch: where its status goes, and how it ends."""

    world: World
    status_file: Path | None = None  # set as soon as the run directory is known
    step: int = 0
    accelerator: Accelerator | None = None
    _started: float = field(default_factory=time.time)

    def write_status(
        self, state: str, reason: str = "", exit_code: int | None = None, **where: Any
    ) -> None:
        """Write `status.json` aside and rename it; nothing where no run directory is known."""
        if self.status_file is None:
            return
        content = {"state": state, "reason": reason, "step": self.step, "exit_code": exit_code}
        write_json_aside(self.status_file, content | where)

    def write_failure(self, error: BaseException, message: str, told: str, code: int) -> None:
        """Tell a failure on standard error, in `log.txt` and in `status.json`.

        The first rank that fails says why: what its peers meet afterwards (a collective that broke
        off) is its consequence, and does not take the place of its word.
        """
        prefix = "" if self.world.is_main_process else f"[rank {self.world.rank}] "
        print(f"{prefix}{told}", file=sys.stderr, flush=True)
        if self.status_file is None:
            return
        with (
            suppress(OSError),
            open(self.status_file.with_name("log.txt"), "a", encoding="utf-8") as log,
        ):
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {prefix}{told}\n")
        where = {}
        if isinstance(error, ShardDamage):
            where = {"rank": self.world.rank, "shard": error.shard, "key": error.key}
        if self.world.world_size == 1 or not self._peer_failed():
            self.write_status("failed", message, code, **where)
        if not self.world.is_main_process:
            # The main rank may just be writing that it runs; it waits for this rank soon after.
            time.sleep(_SETTLES_S)
            if not self._peer_failed():
                self.write_status("failed", message, code, **where)

    def _peer_failed(self) -> bool:
        """Whether a rank of this launch has written its failure to `status.json`."""
        try:
            assert self.status_file is not None
            told = json.loads(self.status_file.read_text())["state"] == "failed"
            return bool(told and self.status_file.stat().st_mtime >= self._started - 1)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def main_rank_spoke(self) -> bool:
        """Whether the main rank has reported this failure; waits a little for it."""
        if self.status_file is None:
            return True
        deadline = time.time() + _FILES_OF_PEERS_S
        while time.time() < deadline:
            if self._peer_failed():
                return True
            time.sleep(0.1)
        return False


def run_command(body: Callable[[Command], None]) -> int:
    """Run `body` and return the exit code: 0, 2 after a `UserError`, 1 after a mistake of ours.

    What every rank finds alike before the process group exists is told by the main rank once; what
    one rank meets later it tells itself. Every ending is in `status.json`. Under a launcher a
    failing rank leaves at once, without waiting for peers that may be inside a collective.
    """
    command = Command(world_from_environment())
    try:
        body(command)
        if command.accelerator is not None:
            command.accelerator.wait_for_everyone()
            command.accelerator.end_training()
        return 0
    except UserError as error:
        failure: BaseException = error
        code, message = EXIT_USER_ERROR, str(error)
        told = f"error: {message}"
    except KeyboardInterrupt as error:
        failure = error
        code, message = 130, "interrupted"
        told = "interrupted; the same command goes on from the last checkpoint, if there is one"
    except Exception as error:
        failure = error
        code, message = 1, f"{type(error).__name__}: {error}"
        told = traceback.format_exc()
    alike = command.accelerator is None and code == EXIT_USER_ERROR
    if not (alike and not command.world.is_main_process and command.main_rank_spoke()):
        command.write_failure(failure, message, told, code)
    if command.world.world_size > 1:
        sys.stdout.flush()
        # An ordinary exit would wait for the process group's threads.
        os._exit(code)
    return code


def write_json_aside(path: Path, content: Any) -> None:
    """Write JSON to a neighbour of `path` and rename it: a reader sees the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
