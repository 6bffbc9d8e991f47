"""Families of encoders: how an encoder's name leads to the network, its weights and its export.

A family owns the names with its prefix (`hf:`, `resnet`, `mine:`) in one modality and is registered
by `register_encoder`. `TextFamily` and `ImageFamily` do what all encoders have in common: the
projection, weights from exports and state dicts, freezing, gradient checkpointing, and the
description in an export. A subclass gives the network.

Shapes: B batch, T tokens, S input side in pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import PartSettings, Registry, settings_problems
from mmsa.models.blank import is_blank
from mmsa.models.encoders import (
    IMAGE_SECTION,
    TEXT_SECTION,
    Encoder,
    ImageEncoder,
    leave_out_unused,
    trained_parts,
)
from mmsa.models.recompute import recompute_in_backward
from mmsa.models.stochastic_depth import set_drop_path
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.weights import (
    State,
    export_encoder_config,
    export_preprocessing,
    is_export,
    load_strictly,
    read_state,
)
from mmsa.preprocessing import ImagePreprocessing

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
            if not path.is_file():
                raise UserError(
                    f"{self.section}.weights={config.weights}: found neither an export "
                    "(model.safetensors, as in RUN/best) nor a .safetensors or .pth file; give "
                    "one, or pretrained, or none"
                )
            state, where = read_state(path), f"the weights {path}"
            encoder.source = f"state dict {path}"
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


class TextFamily(EncoderFamily):
    """Text encoders. A subclass gives `network`; the body's output (B, T, D) is pooled here."""

    section = TEXT_SECTION
    Settings: ClassVar[type[EncoderSettings] | None] = TextEncoderSettings

    def network(self, name: str, settings: Any) -> Network:
        """The network with fresh weights; `settings.vocab_size` is a number by now."""
        raise NotImplementedError

    def build(self, config: TextEncoderConfig, vocab_size: int | None) -> TextEncoder:
        """The encoder of `config`, see `build_text_encoder`."""
        settings = self._settings(config, "text_encoder")
        if settings.vocab_size is None:
            settings = settings.model_copy(update={"vocab_size": vocab_size})
        if settings.vocab_size is None:
            raise UserError(f"{self.section}.config.vocab_size is not given; give a number")
        network = self.network(self.own_name(config.name), settings)
        encoder = TextEncoder(
            network.body,
            pooling=config.pooling,
            projection=config.projection,
            width=network.width,
            vocab_size=settings.vocab_size,
        )
        encoder.architecture = settings.model_dump(mode="json")
        encoder.check_vocabulary(vocab_size)
        self._load(encoder, config, "text_encoder")
        if config.pooling == "auto" and not is_blank():
            encoder.look_at_order()
        self._choose_trained(encoder, config, network)
        tokens = torch.zeros(1, 4, dtype=torch.long)
        self._finish(encoder, config, network, tokens, torch.ones_like(tokens))
        return encoder


class ImageFamily(EncoderFamily):
    """Image encoders. A subclass gives `network` and, where it differs, `preprocessing`."""

    section = IMAGE_SECTION

    def network(self, name: str, settings: Any, image_size_px: int) -> Network:
        """The network with fresh weights, for square images of `image_size_px`."""
        raise NotImplementedError

    def preprocessing(self, name: str, settings: Any) -> ImagePreprocessing:
        """Input size, normalisation and interpolation: by default those of ImageNet at 224 px."""
        return ImagePreprocessing()

    def build(
        self, config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
    ) -> ImageEncoder:
        """The encoder of `config`, see `build_image_encoder`."""
        settings, name = self._settings(config, "image_encoder"), self.own_name(config.name)
        path = Path(config.weights).expanduser()
        if preprocessing is None and config.weights not in ("none", "pretrained"):
            preprocessing = export_preprocessing(path) if is_export(path) else None
        if preprocessing is None:
            preprocessing = self.preprocessing(name, settings)
        preprocessing = preprocessing.at_size(config.image_size_px)
        network = self.network(name, settings, preprocessing.image_size_px)
        if config.drop_path is not None:
            set_drop_path(network.body, config.drop_path, name=config.name)
        encoder = ImageEncoder(
            network.body,
            body_width=network.width,
            projection=config.projection,
            preprocessing=preprocessing,
        )
        encoder.architecture = None if settings is None else settings.model_dump(mode="json")
        self._load(encoder, config, "image_encoder")
        self._choose_trained(encoder, config, network)
        side = preprocessing.image_size_px
        self._finish(encoder, config, network, torch.zeros(1, 3, side, side, dtype=torch.uint8))
        return encoder


ENCODERS: dict[Modality, Registry[type[Any]]] = {
    "text": Registry("text encoders with the prefix"),
    "image": Registry("image encoders with the prefix"),
}
Family = TypeVar("Family", bound=EncoderFamily)


def register_encoder(modality: Modality, prefix: str) -> Callable[[type[Family]], type[Family]]:
    """Class decorator: the family builds the encoders whose names begin with `prefix` ("mine:").

    The class is a `TextFamily` or an `ImageFamily`, as `modality` says. Raises `UserError` for a
    prefix that is taken. The longest prefix of a name decides.
    """
    base = TextFamily if modality == "text" else ImageFamily

    def register(family: type[Family]) -> type[Family]:
        if not issubclass(family, base):
            raise UserError(
                f"register_encoder('{modality}', '{prefix}'): {family.__qualname__} is not a "
                f"subclass of {base.__name__}; derive it from that class"
            )
        ENCODERS[modality].add(prefix, family)
        family.prefix = prefix
        return family

    return register


def family_class(modality: Modality, name: str) -> type[Any] | None:
    """The family with the longest prefix of `name`; None where there is none."""
    prefixes = [prefix for prefix in ENCODERS[modality] if name.startswith(prefix)]
    return ENCODERS[modality][max(prefixes, key=len)] if prefixes else None
