"""The one configuration of a run: typed, frozen, read once, every problem reported together.

`defaults < --config FILE < section.key=value`. Units are in the names or in the field's
description. The resolved configuration is written to `RUN/config.yaml`, which can be given to
`--config` again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mmsa.config_types import Beta, Duration, Section, unquoted
from mmsa.data_config import DataConfig, ModalityDropoutConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.overrides import apply_override, problems_in
from mmsa.foundation.settings_yaml import dump_settings, read_yaml
from mmsa.model_config import (
    AuxiliaryConfig,
    FusionConfig,
    ImageEncoderConfig,
    LossConfig,
    ModelConfig,
    Projection,
    TextEncoderConfig,
)

# The sections of data and model are written elsewhere and read from here, as all others.
__all__ = [
    "LATER_SETTINGS",
    "AuxiliaryConfig",
    "Check",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FusionConfig",
    "ImageEncoderConfig",
    "LaunchConfig",
    "LossConfig",
    "ModalityDropoutConfig",
    "ModelConfig",
    "OptimConfig",
    "Projection",
    "RunConfig",
    "Section",
    "TextEncoderConfig",
    "TrainConfig",
    "load_config",
]

# A further check of the raw settings by a part that this file must not import (the fusion heads'
# own settings, say): takes the nested dictionary, returns a list of problems.
Check = Callable[[dict[str, Any]], list[str]]
# Settings that came after the first version; see `Config.content`.
LATER_SETTINGS = (
    "run.trackers",
    "data.groups",
    "data.read_ahead",
    "data.cache",
    "data.cache_limit",
    "data.auto_augment",
    "data.auto_augment_operations",
    "data.auto_augment_magnitude",
    "data.modality_dropout",
    "model.stand_ins",
    "model.image_encoder.drop_path",
    "model.auxiliary",
    "optim.layer_decay",
    "train.ema",
    "train.init_from",
    "train.communication",
    "train.checkpoint_in_background",
    "gpu",
)


class RunConfig(Section):
    dir: str | None = Field(None, description="run directory; must be given, here or by run.dir=")
    seed: int = Field(0, ge=0, description="of order, augmentation, dropout and fresh weights")
    deterministic: bool = Field(False, description="deterministic CUDA algorithms; slower")
    log_every_steps: int = Field(10, ge=1)
    audit: bool = Field(False, description="write the keys that each rank read, to prove it")
    profile: bool = Field(False, description="time the parts of the first steps, and trace some")
    trackers: tuple[str, ...] = Field(("tensorboard",), description="show the measures; or []")
    max_time: Duration | None = Field(None, description="limit of this launch: seconds or HH:MM:SS")
    stop_signals: tuple[Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"], ...] = Field(
        ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"), description="save, then end"
    )
    stop_timeout_s: float = Field(20.0, gt=0, description="for the ranks to agree on a stop")
    collective_timeout_s: int = Field(1800, ge=1, description="until a rank counts as hanging")


class OptimConfig(Section):
    name: Literal["adamw", "adam"] = "adamw"
    text_lr: float = Field(2e-5, ge=0, description="peak learning rate of the text encoder")
    image_lr: float = Field(1e-4, ge=0)
    head_lr: float = Field(1e-3, ge=0, description="of fusion head and projections")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="of an encoder's rate, from each layer to the one below"
    )
    weight_decay: float = Field(0.01, ge=0, description="not on norms and biases")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="decay from the end of warm-up to 0 at the last step"
    )
    warmup_steps: int | None = Field(None, ge=0, description="null: a tenth of all steps")
    clip_norm: float | None = Field(1.0, gt=0, description="of the whole gradient; null: off")


class TrainConfig(Section):
    global_batch_size: int = Field(32, ge=1, description="samples per optimizer step, all ranks")
    micro_batch_size: int = Field(8, ge=1, description="samples in one forward on one rank")
    epochs: int = Field(5, ge=1)
    max_steps: int | None = Field(None, ge=1, description="end earlier, after this many steps")
    validate_every_steps: int | None = Field(None, ge=1, description="null: at each epoch's end")
    checkpoint_every_steps: int | None = Field(None, ge=1, description="null: at each epoch's end")
    checkpoint_in_background: bool = Field(
        False, description="copy the state, then write it by a thread while training continues"
    )
    keep_checkpoints: int = Field(2, ge=1, description="the newest k stay")
    select_by: str = Field("weighted_f1", description="validation metric of the best export")
    patience: int | None = Field(None, ge=1, description="validations without a better one")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a loss or gradient that is not finite: end, or leave the step out"
    )
    mixed_precision: Annotated[Literal["no", "tf32", "bf16", "fp16"] | None, unquoted("no")] = (
        Field(None, description="no: strict float32; null: as the launcher says")
    )
    communication: Literal["float32", "bf16"] = Field(
        "float32", description="what gradients are summed in over the ranks; bf16 changes results"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the average of the weights; null: no average"
    )
    compile: bool = Field(False, description="torch.compile the encoders; not with zero3")
    init_from: str | None = Field(
        None, description="run or export whose weights a new run begins with, its head included"
    )


class EvalConfig(Section):
    batch_size: int = Field(64, ge=1, description="samples per forward, whatever the world")
    cpu_threads: int = Field(
        1, ge=1, description="per process; fixed, because sums depend on the number of threads"
    )


class GpuConfig(Section):
    """How a GPU computes. On a CPU none of it changes anything."""

    attention: tuple[Literal["flash", "efficient", "cudnn", "math"], ...] = Field(
        ("flash", "efficient", "math"), min_length=1, description="backends that may be used"
    )
    pad_tokens_to: int = Field(
        8, ge=1, description="texts of a batch are padded to a multiple of this; 1: off"
    )
    packing: Annotated[Literal["auto", "mask", "off"], unquoted("off")] = Field(
        "auto", description="texts of a batch are packed, under a mask, or padded alone"
    )
    cudnn_benchmark: bool = Field(
        True, description="try cuDNN's convolutions and keep the fastest; not if deterministic"
    )
    copy_stream: bool = Field(True, description="copy batches beside the step, one ahead")


class LaunchConfig(Section):
    engine: Literal["any", "ddp", "zero1", "zero2", "zero3"] = "any"
    world_size: Annotated[int, Field(ge=1)] | Literal["any"] = "any"


class Config(Section):
    """All of a run's settings. Frozen; its sections are the classes above."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    gpu: GpuConfig = GpuConfig()
    launch: LaunchConfig = LaunchConfig()

    def content(self) -> dict[str, Any]:
        """Every key with its value, as JSON has them, except `LATER_SETTINGS` at their default.

        Files and hashes are then the same as those of versions without them, which can read them.
        """
        content = self.model_dump(mode="json")
        default = Config().model_dump(mode="json")
        for path in LATER_SETTINGS:
            *sections, key = path.split(".")
            mine, usual = content, default
            for section in sections:
                mine, usual = mine[section], usual[section]
            if mine[key] == usual[key]:
                del mine[key]
        return content

    def to_yaml(self) -> str:
        """The `content` as a file that `load_config` reads back as an equal configuration."""
        return dump_settings(self.content())


def load_config(
    file: str | None, overrides: Iterable[str] = (), *, checks: Iterable[Check] = ()
) -> Config:
    """Merge defaults, `file` (YAML) and `section.key=value` strings into a `Config`.

    Raises `UserError` that lists every problem: unknown keys with the nearest known one, values
    of the wrong type or range, and what `checks` find.
    """
    problems: list[str] = []
    raw: dict[str, Any] = read_yaml(file) if file else {}
    for override in overrides:
        problem = apply_override(raw, override)
        if problem:
            problems.append(problem)
    config: Config | None = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += problems_in(error, Config)
    sections = {name: section for name, section in raw.items() if isinstance(section, dict)}
    for check in checks:
        problems += check(sections)
    if problems or config is None:
        raise UserError(
            one_or_many(
                problems, where=f"configuration ({file or 'defaults'} and the command line)"
            )
        )
    return config
