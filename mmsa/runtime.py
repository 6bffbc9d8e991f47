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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.errors import EXIT_USER_ERROR, ShardDamage, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("mmsa")

_SETTLES_S = 0.5  # how long a failing rank looks after its word in status.json
_FILES_OF_PEERS_S = 3.0  # how long a rank waits for the main rank's word before speaking itself


@dataclass(frozen=True)
class World:
    """What the launcher said of this process, known before any process group is made."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launched: bool = False
    deepspeed: bool = False
    zero_stage: int = 2  # of a DeepSpeed launch; -1 where its file does not say
    deepspeed_file: str | None = None
    accumulation_steps: int | None = None  # as the engine's configuration says it, if it does
    offload_optimizer: str = "none"
    offload_param: str = "none"
    mixed_precision: str = "no"
    forced_cpu: bool = False
    fsdp: bool = False
    slurm_tasks: int = 1
    stray_world_size: int = 1  # WORLD_SIZE where no RANK is set: a world that nobody joined

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def engine(self) -> str:
        """The engine that the launch asks for: single, ddp, or zero0 to zero3."""
        if self.deepspeed:
            return f"zero{self.zero_stage}"
        return "ddp" if self.launched else "single"


def world_from_environment() -> World:
    """Read what `accelerate launch`, torchrun and SLURM set; nothing set is world size 1."""
    launched = "RANK" in os.environ
    spoken_of = _number("WORLD_SIZE") or 1
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return World(
        rank=_number("RANK") or 0,
        world_size=spoken_of if launched else 1,
        local_rank=_number("LOCAL_RANK") or 0,
        launched=launched,
        deepspeed=_flag("ACCELERATE_USE_DEEPSPEED"),
        zero_stage=_zero_stage(file),
        deepspeed_file=None if file == "none" else file,
        accumulation_steps=_number("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        offload_optimizer=os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        offload_param=os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        forced_cpu=_flag("ACCELERATE_USE_CPU"),
        fsdp=_flag("ACCELERATE_USE_FSDP"),
        slurm_tasks=(_number("SLURM_NTASKS") or 1) if "SLURM_PROCID" in os.environ else 1,
        stray_world_size=1 if launched else spoken_of,
    )


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes", "on", "y", "t")


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def _zero_stage(file: str) -> int:
    if file == "none":
        return _number("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2
    try:
        return int(json.loads(Path(file).read_text())["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # `check_launch` says what is wrong with it


def leave_deepspeed_out() -> None:
    """Make Accelerate connect the ranks of a DeepSpeed launch without DeepSpeed."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"


def prepare_deepspeed(*, on_cpu: bool) -> None:
    """Settings that DeepSpeed and Accelerate read of it when they are imported."""
    # Accelerate would refuse an engine file beside fields that were compared with it already.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks, and says so on each rank


def prepare_process() -> None:
    """Settings that must stand before libraries start threads."""
    # Loader workers are started beside a parent that has tokenized: Rust threads do not survive.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait take a busy machine's cores from each other: ten times
    # slower was measured with two threads on two cores that did other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
