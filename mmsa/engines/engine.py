"""The engine of a launch: one process, DDP, or DeepSpeed's ZeRO 1 to 3.

The launch alone chooses it (the Accelerate configuration file). `launch.engine` and
`launch.world_size` say what the run expects; a difference is refused before the process group
exists. Some mistaken launches of Accelerate end with exit code 0 (docs/engines.md lists them), so
what really started is compared once more with what the launcher announced.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mmsa.config import Config, GpuConfig, LaunchConfig
from mmsa.data.plan import BatchPlan
from mmsa.engines.deepspeed_plugin import deepspeed_plugin
from mmsa.engines.deepspeed_settings import check_engine_file, file_precision
from mmsa.engines.gpu_kernels import TF32, choose_kernels, computes_in_tf32, kernel_facts
from mmsa.engines.hardware import device_type, has_bf16
from mmsa.errors import UserError
from mmsa.process import runtime
from mmsa.process.memory import keep_freed_memory
from mmsa.process.runtime import World

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor


# DDP's gradient buckets by device, in MiB: of gloo by measurement (benchmarks/scaling.py), of NCCL
# torch's own.
BUCKET_MIB = {"cpu": 5.0, "gpu": 25.0}


def check_launch(expected: LaunchConfig, world: World) -> None:
    """Raise `UserError` if the launch is not the one that the configuration expects.

    Reads the engine file alone, so every rank finds the same before the first collective.
    """
    if world.fsdp:
        raise UserError(
            "this launch uses FSDP, which mmsa does not support (on CPU, Accelerate silently "
            "replaces it with plain DDP). For partitioned states launch with: "
            "accelerate launch --config_file launch/accelerate/zero2.yaml ..."
        )
    if world.deepspeed:
        file_precision(world)  # raises where the engine file is none
        if world.forced_cpu:
            raise UserError(
                "this launch uses DeepSpeed and forces the CPU (ACCELERATE_USE_CPU); Accelerate "
                "would silently run plain DDP. Remove the CPU flag: without a GPU the same launch "
                "runs on CPU processes"
            )
        if not world.launched:
            raise UserError(
                "DeepSpeed is enabled (ACCELERATE_USE_DEEPSPEED), but this process was started "
                "without a launcher; launch with: "
                "accelerate launch --config_file launch/accelerate/zero2.yaml ..."
            )
    if expected.world_size != "any" and expected.world_size != world.world_size:
        cpu_flag = "remove --cpu or use_cpu: true, and " if world.forced_cpu else ""
        raise UserError(
            f"launch.world_size={expected.world_size}, but this launch has {world.world_size} "
            f"process(es); {cpu_flag}launch with: accelerate launch --config_file "
            f"accelerate_config.yaml --num_processes {expected.world_size} ..."
        )
    if expected.engine not in ("any", world.engine):
        raise UserError(
            f"launch.engine={expected.engine}, but this launch is {_in_words(world)}; launch with: "
            f"accelerate launch --config_file launch/accelerate/{expected.engine}.yaml "
            "--num_processes N ..."
        )


def _in_words(world: World) -> str:
    if world.engine == "single":
        return "one process without a launcher"
    return f"{world.engine} with {world.world_size} process(es)"


def precision_of_launch(wanted: str | None, world: World) -> str:
    """The precision of this launch: `wanted` (train.mixed_precision), else the launcher's, else
    bf16 if the hardware has it.

    Returns "no", "tf32", "bf16" or "fp16". Raises `UserError` for what cannot run: fp16 under
    DeepSpeed.
    """
    precision = wanted or (file_precision(world) if world.deepspeed else None)
    precision = precision or world.mixed_precision or ("bf16" if has_bf16() else "no")
    if precision == "fp16" and world.deepspeed:
        raise UserError(
            "mixed precision fp16 is not supported under DeepSpeed; use bf16 or no "
            "(train.mixed_precision=bf16), or launch with DDP"
        )
    return precision


def check_device(config: Config, world: World) -> None:
    """Raise `UserError` for settings that the device or the engine of this launch cannot run."""
    on_cpu = device_type() == "cpu"
    check_engine_file(world, config)
    _check_precision(precision_of_launch(config.train.mixed_precision, world), on_cpu)
    if config.model.image_encoder.batch_norm == "sync" and on_cpu:
        raise UserError(
            "model.image_encoder.batch_norm=sync needs GPUs (torch's SyncBatchNorm does not run on "
            "CPU); use train or frozen here"
        )
    if config.train.compile and world.engine == "zero3":
        raise UserError(
            "train.compile=true does not work with ZeRO-3, which fetches each layer's weights when "
            "it is called; use zero2 or ddp, or train.compile=false"
        )

    if config.train.communication == "bf16" and world.engine == "zero3":
        raise UserError(
            "train.communication=bf16 does not work with ZeRO-3, which would gather the weights of "
            "checkpoints and exports in bfloat16 too; use zero2 or ddp, or "
            "train.communication=float32"
        )


def _check_precision(precision: str, on_cpu: bool) -> None:
    if precision == "fp16" and on_cpu:
        raise UserError("mixed precision fp16 needs a GPU; on CPU use bf16 or no")
    if precision == TF32 and (on_cpu or not has_bf16()):  # both came with the same generation
        found = "this machine has none" if on_cpu else "this GPU is older"
        raise UserError(
            "precision tf32 is how NVIDIA's GPUs since Ampere (compute capability 8.0) may compute "
            f"float32, and {found}; use no, which is strict float32, or bf16"
        )


def make_accelerator(
    mixed_precision: str | None,
    plan: BatchPlan | None = None,
    *,
    clip_norm: float | None = None,
    timeout_s: int = 1800,
    communication: str = "float32",
    gpu: GpuConfig | None = None,
) -> Accelerator:
    """The Accelerator on all GPUs of the launch, or on CPU processes where there is no GPU.

    With `plan` it is for training, by the engine of the launch. Without one it is for evaluation:
    the ranks share the batches, and no engine wraps the model, whatever the launch says.
    `mixed_precision` None takes the launcher's; `timeout_s` is how long a collective waits for its
    peers; `communication` is `train.communication`; `gpu` None takes its defaults.
    Raises `UserError` if the world that started is not the one that the launcher announced (two
    unconnected copies, say), or if an engine file contradicts the configuration.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import InitProcessGroupKwargs

    # The older torch versions that we support lack its successor `forward_sync_buffers`.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    world = runtime.world_from_environment()
    on_cpu = device_type() == "cpu"
    with_deepspeed = world.deepspeed and plan is not None
    precision = precision_of_launch(mixed_precision, world)
    _check_precision(precision, on_cpu)
    if on_cpu:
        keep_freed_memory(for_steps=True)
    plugin = None
    if with_deepspeed:
        assert plan is not None
        plugin = deepspeed_plugin(world, precision, plan, clip_norm, on_cpu, communication)
    else:
        runtime.leave_deepspeed_out()
    # Each rank keeps its own BatchNorm statistics; they are averaged where they are used.
    bucket_mib = BUCKET_MIB["cpu" if on_cpu else "gpu"]
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=False,
        bucket_cap_mb=bucket_mib,
        comm_hook=_hook_of(communication),
        # Gradients are parts of the buckets that are summed, not copies of them.
        gradient_as_bucket_view=True,
    )
    handlers: list[Any] = [ddp]
    if world.launched:
        # Without gloo's name Accelerate reports one process on every rank of a DeepSpeed launch.
        backend = "gloo" if on_cpu else None
        timeout = timedelta(seconds=timeout_s)
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
    accelerator = Accelerator(
        # Under a launcher without GPUs this gives a gloo world; without it, ranks that do not know
        # of each other, silently. With DeepSpeed it would be the other way round.
        cpu=on_cpu and not with_deepspeed,
        # DeepSpeed's own bf16 casts the parameters of a BatchNorm and not its statistics; its
        # autocast is set by `deepspeed_settings` instead.
        mixed_precision="no" if with_deepspeed or precision == TF32 else precision,
        gradient_accumulation_steps=1 if plan is None else plan.accumulation_steps,
        deepspeed_plugin=plugin,
        kwargs_handlers=handlers,
    )
    # After it: a launcher's file may have it change them.
    choose_kernels(precision, gpu or GpuConfig(), training=plan is not None)
    if accelerator.num_processes != world.world_size:
        raise UserError(
            f"the launcher announced {world.world_size} processes, but Accelerate started "
            f"{accelerator.num_processes}; launch with: accelerate launch --config_file "
            "accelerate_config.yaml --num_processes N ..."
        )
    if with_deepspeed and engine_name(accelerator) != world.engine:
        raise UserError(
            f"the launcher announced {world.engine}, but Accelerate started "
            f"{engine_name(accelerator)}; launch with: accelerate launch --config_file "
            f"launch/accelerate/{world.engine}.yaml ..."
        )
    return accelerator


def _hook_of(communication: str) -> Any:
    """How DDP sums gradients; bf16: rounded to bfloat16, summed by the backend, and back."""
    from accelerate.utils import DDPCommunicationHookType

    return DDPCommunicationHookType.BF16 if communication == "bf16" else DDPCommunicationHookType.NO


def engine_name(accelerator: Accelerator) -> str:
    """The engine as it really is: single, ddp, or zero0 to zero3."""
    if is_deepspeed(accelerator):
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return "ddp" if accelerator.use_distributed else "single"


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed wraps the model."""
    return str(accelerator.distributed_type.value) == "DEEPSPEED"


def precision(accelerator: Accelerator) -> str:
    """The precision as it really is: no, tf32, bf16 or fp16."""
    if is_deepspeed(accelerator):
        autocast = accelerator.state.deepspeed_plugin.deepspeed_config.get("torch_autocast", {})
        found = "bf16" if autocast.get("enabled") else "no"
    else:
        found = str(accelerator.mixed_precision)
    return TF32 if found == "no" and computes_in_tf32() else found


def autocast(accelerator: Accelerator) -> AbstractContextManager[None]:
    """The mixed precision of the launch, for a forward pass that no engine wraps."""
    import torch

    if not is_deepspeed(accelerator):
        context: AbstractContextManager[None] = accelerator.autocast()
        return context
    return torch.autocast(
        accelerator.device.type, torch.bfloat16, enabled=precision(accelerator) == "bf16"
    )


def clip_gradients(
    accelerator: Accelerator, model: torch.nn.Module, max_norm: float | None
) -> Tensor | float:
    """Clip the whole gradient to `max_norm` (None: do not clip); returns its norm before.

    DeepSpeed clips inside its backward pass, to its `gradient_clipping`; here its norm is only
    read, without waiting for the device.
    """
    if is_deepspeed(accelerator):
        norm: Tensor | float | None = model.get_global_grad_norm()  # type: ignore[operator]
        return 0.0 if norm is None else norm
    clipped: Tensor = accelerator.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    return clipped


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
        "mixed_precision": precision(accelerator),
        "threads_per_process": torch.get_num_threads(),
        **(kernel_facts() if on_gpu else {}),
    }
