"""What all families of encoders have in common: weights, freezing, checkpointing, description.

`encoder_families.py` has the two kinds that families derive from, and the register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import PartSettings, settings_problems
from mmsa.models.encoders import (
    IMAGE_SECTION,
    TEXT_SECTION,
    Encoder,
    leave_out_unused,
    trained_parts,
)
from mmsa.models.recompute import recompute_in_backward
from mmsa.models.weights import (
    State,
    export_encoder_config,
    is_export,
    load_strictly,
    read_state,
)

Modality = Literal["text", "image"]
EncoderConfig = TextEncoderConfig | ImageEncoderConfig
SECTIONS: dict[Modality, str] = {"text": TEXT_SECTION, "image": IMAGE_SECTION}


class EncoderSettings(PartSettings):
    """Base of a family's own settings: what is under `config` of an encoder.

    With them and its name an encoder is built without files or network: exports contain them.
    """


class TextEncoderSettings(EncoderSettings):
    """Base for text encoders. The run fills in `vocab_size`, the tokenizer's number of ids."""

    vocab_size: int | None = Field(None, ge=1, description="null: that of the tokenizer")


@dataclass(frozen=True)
class Network:
    """The network of an encoder and its stages.

    `body` takes normalised images (B, 3, S, S) and returns features (B, D), or takes `input_ids`
    and `attention_mask` (B, T) and returns one row per token (B, T, D). `width` is D. `stages` are
    in the order of the forward pass, for `last_n` and gradient checkpointing; `above` are the
    norms after the last one, which are trained with it.
    """

    body: nn.Module
    width: int
    stages: Sequence[nn.Module | Sequence[nn.Module]] = ()
    above: Sequence[nn.Module] = ()


class EncoderFamily:
    """Encoders whose names begin with `prefix`.

    `Settings` are what `config` may contain; None where the family reads it itself.
    """

    prefix: ClassVar[str]  # set by `register_encoder`
    section: ClassVar[str]
    Settings: ClassVar[type[EncoderSettings] | None] = EncoderSettings
    finds_unused: ClassVar[bool] = True  # whether to look for parameters that no feature uses
    is_foreign: ClassVar[bool] = True  # whether `encoder_probes` must try what it builds

    def names(self) -> Sequence[str]:
        """The names that can be used, for messages; empty where they cannot be listed."""
        return [f"{self.prefix}NAME"]

    def pretrained(self, name: str) -> tuple[State, str]:
        """The state dict of `weights: pretrained`, and a description of where it is from.

        Raises `UserError` where there is none.
        """
        raise UserError(
            f"{self.section}.weights=pretrained, but encoders named {self.prefix}... have no "
            "pretrained weights; use none or a PATH"
        )

    def body_state(self, encoder: Any, name: str, state: State) -> State:
        """The body's tensors in a state dict: without a classifier, say."""
        return state

    def read_weights(self, path: Path, config: EncoderConfig) -> tuple[State, str]:
        """The state dict at the path that gives `weights` (no export), and a description of it.

        Raises `UserError` where there is none.
        """
        if not path.is_file():
            raise UserError(
                f"{self.section}.weights={config.weights}: found neither an export "
                "(model.safetensors, as in RUN/best) nor a .safetensors or .pth file; give "
                "one, or pretrained, or none"
            )
        return read_state(path), f"state dict {path}"

    def own_name(self, name: str) -> str:
        """`name` without a prefix that ends with a colon."""
        return name.removeprefix(self.prefix) if self.prefix.endswith(":") else name

    def _settings(self, config: EncoderConfig, part: str) -> Any:
        """The family's settings, from `config.config` or from the export with the weights."""
        if self.Settings is None:
            return None
        values = config.config
        if values is None and config.weights not in ("none", "pretrained"):
            path = Path(config.weights).expanduser()
            values = export_encoder_config(path, part) if is_export(path) else None
        problems = self.problems(values or {})
        if problems:
            raise UserError(one_or_many(problems, where=config.name))
        return self.Settings(**(values or {}))

    def problems(self, values: dict[str, Any]) -> list[str]:
        """What is wrong with the settings under `config`, as text."""
        if self.Settings is None:
            return []
        return settings_problems(
            self.Settings,
            values,
            section=f"{self.section}.config",
            part=f"encoders named {self.prefix}...",
        )

    def _load(self, encoder: Encoder, config: EncoderConfig, part: str) -> None:
        if config.weights == "none":
            return
        if config.weights == "pretrained":
            state, where = self.pretrained(self.own_name(config.name))
            encoder.source = f"pretrained, {where}"
            where = f"the weights {where}"
        else:
            path = Path(config.weights).expanduser()
            if is_export(path):
                encoder.load_export(path, part)
                return
            state, where = self.read_weights(path, config)
            encoder.source, where = where, f"the weights {path}"
        own_state = self.body_state(encoder, self.own_name(config.name), state)
        load_strictly(encoder.body, own_state, where=where)

    def _choose_trained(self, encoder: Encoder, config: EncoderConfig, network: Network) -> None:
        trained = trained_parts(
            config.train,
            config.last_n,
            body=network.body,
            layers=network.stages,
            above=network.above,
            section=self.section,
        )
        encoder.train_only(trained)
        encoder.layers = tuple(
            (stage,) if isinstance(stage, nn.Module) else tuple(stage) for stage in network.stages
        )

    def _finish(
        self, encoder: Encoder, config: EncoderConfig, network: Network, *inputs: torch.Tensor
    ) -> None:
        if self.finds_unused:
            leave_out_unused(encoder, *inputs)
        if config.gradient_checkpointing:
            recompute_in_backward(network.stages, section=self.section)


def short_memory(error: BaseException, encoder: str, side: int) -> UserError | None:
    """The error where memory was short for one image of `side` px; None for any other `error`."""
    if "allocate" not in str(error):  # PyTorch's words on a CPU
        return None
    return UserError(
        f"there is not enough memory for one image of {side} px in {encoder}; give a smaller "
        f"{IMAGE_SECTION}.image_size_px, or null for its own size"
    )
