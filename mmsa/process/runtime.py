"""The process and its world: what the launcher says, deterministic kernels, logging.

Reads and writes the environment variables of the launch. Others are read where they belong: glibc's
in memory.py, SLURM's in launch/.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.closed_stdout import discard_stdout
from mmsa.foundation.open_files import allow_open_files
from mmsa.foundation.parsing import parse_json
from mmsa.process.launcher import (
    end_with_launcher,
    parent_command_line,
    requested_processes,
)

logger = logging.getLogger("mmsa")

NCCL_FOLDER_NAME = "nccl"


@dataclass(frozen=True)
class World:
    """What the launcher says about this process, known before any process group exists."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # ranks of this launch on this machine
    launched: bool = False
    deepspeed: bool = False
    zero_stage: int = 2  # of a DeepSpeed launch; -1 where its file does not say
    deepspeed_file: str | None = None
    accumulation_steps: int | None = None  # as the engine's configuration says it, if it does
    offload_optimizer: str = "none"
    offload_param: str = "none"
    mixed_precision: str | None = None  # None: the launcher has not said
    forced_cpu: bool = False
    fsdp: bool = False
    slurm_tasks: int = 1
    stray_world_size: int = 1  # WORLD_SIZE where no RANK is set: a world that nobody joined
    # What `accelerate launch` was to start where it started this process alone; 0: more than one.
    unheeded_processes: int = 1
    launcher_grace_s: float | None = None  # between its SIGTERM and SIGKILL; None: no launcher

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
    announced = _number("WORLD_SIZE") or 1
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return World(
        rank=_number("RANK") or 0,
        world_size=announced if launched else 1,
        local_rank=_number("LOCAL_RANK") or 0,
        local_world_size=(_number("LOCAL_WORLD_SIZE") or 1) if launched else 1,
        launched=launched,
        deepspeed=_flag("ACCELERATE_USE_DEEPSPEED"),
        zero_stage=_zero_stage(file),
        deepspeed_file=None if file == "none" else file,
        accumulation_steps=_number("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        offload_optimizer=os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        offload_param=os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION"),
        forced_cpu=_flag("ACCELERATE_USE_CPU"),
        fsdp=_flag("ACCELERATE_USE_FSDP"),
        slurm_tasks=(_number("SLURM_NTASKS") or 1) if "SLURM_PROCID" in os.environ else 1,
        stray_world_size=1 if launched else announced,
        unheeded_processes=1 if launched else _unheeded_processes(),
        launcher_grace_s=_launcher_grace_s() if launched else None,
    )


def _unheeded_processes() -> int:
    """What `accelerate launch` was told to start, for a process that it started without ranks.

    Then it sets a precision, and an address to meet at only for several processes. The number is in
    its command line, unless a configuration file of Accelerate says it.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "MASTER_ADDR" not in os.environ:
        return 1
    number = requested_processes(parent_command_line())
    return 0 if number is None else number


def _launcher_grace_s() -> float:
    """Seconds that a launcher leaves its ranks between SIGTERM and SIGKILL.

    30, but for these variables, which newer versions of torch read (`torch/distributed/run.py`,
    `torch/distributed/launcher/api.py`).
    """
    set_to = _number("PET_SHUTDOWN_TIMEOUT") or _number("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    return float(set_to or 30)


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes", "on", "y", "t")


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def _zero_stage(file: str) -> int:
    if file == "none":
        return _number("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2
    try:
        return int(parse_json(Path(file).read_text())["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # `check_launch` says what is wrong with it


def leave_deepspeed_out() -> None:
    """Make Accelerate connect the ranks of a DeepSpeed launch without DeepSpeed."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"


def prepare_deepspeed(*, on_cpu: bool) -> None:
    """Settings that DeepSpeed and Accelerate read of it when they are imported."""
    # Accelerate would refuse an engine file together with fields that already agree with it.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks, and says so on each rank


def prepare_process() -> None:
    """Settings that must be made before libraries start threads; may be called again."""
    end_with_launcher()
    allow_open_files()
    # Loader workers are forked while tokenizers may have threads, which do not survive a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait steal each other's cores on a busy machine: ten times slower
    # was measured with two threads on two cores that had other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _prepare_gpu_libraries()


def _prepare_gpu_libraries() -> None:
    """What torch and NCCL read when they first use a GPU; what the user has set stays."""
    # Blocks that can grow: texts of another length would leave holes in the GPU's memory.
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the newer name
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    # NCCL's last collectives, written where one times out: the only trace of which rank was late.
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


def record_collectives(world: World, run_dir: Path) -> None:
    """Have a rank whose collective times out write NCCL's last ones to RUN/nccl/; for GPUs.

    The main rank makes the folder, in the directory that it has locked. The others may get here
    before there is one; none makes a collective before the main rank has been here.
    """
    folder = run_dir / NCCL_FOLDER_NAME
    if "TORCH_FR_DUMP_TEMP_FILE" not in os.environ:
        if world.is_main_process:
            folder.mkdir(exist_ok=True)
        os.environ["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / "rank_")  # the rank is added


def make_deterministic() -> None:
    """Deterministic CUDA algorithms (`run.deterministic`): slower. CPU runs always are."""
    import torch

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


class _LogFile(logging.FileHandler):
    """A log file that may be on a full disk: its lines are on the screen as well."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _AboveBars(logging.StreamHandler):
    """Lines on the screen; open progress bars are redrawn below them. Where the screen has gone or
    is a file on a full disk, they are in the log file: a run goes on without its reader."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, BrokenPipeError):
            discard_stdout()
        elif not isinstance(error, OSError):
            super().handleError(record)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if getattr(tqdm, "_instances", None):  # none where no bar is open
            with tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        else:
            super().emit(record)


SHOWN_BY_A_BAR = {"shown_by_a_bar": True}  # `extra` of a line for the log file alone


def set_up_logging(world: World, log_file: Path | None) -> None:
    """The main rank logs to standard output and `log_file`; other ranks log warnings only."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main_process else logging.WARNING)
    prefix = "" if world.is_main_process else f"[rank {world.rank}] "
    to_screen = _AboveBars(sys.stdout)
    to_screen.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    to_screen.addFilter(lambda record: not hasattr(record, "shown_by_a_bar"))
    logger.addHandler(to_screen)
    if log_file is not None and world.is_main_process:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            to_file = _LogFile(log_file, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{log_file.parent} cannot be a run directory ({error.strerror}); choose another "
                "run.dir"
            ) from None
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(to_file)
