"""Image encoders of timm: `timm:NAME`, the whole library.

NAME is a model of timm, with or without the tag of its weights (`resnet18`, `resnet18.a1_in1k`), a
repository of the Hugging Face hub in timm's format (`OWNER/NAME`), or a directory like one. Input
size, mean, deviation, interpolation and crop are those of the model's own `pretrained_cfg`.

timm is imported when an encoder is built: the import alone takes more than a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError, first_line
from mmsa.models.encoder_families import EncoderSettings, ImageFamily, Network, register_encoder
from mmsa.models.encoder_family import short_memory
from mmsa.models.encoders import IMAGE_SECTION, Encoder, ImageEncoder
from mmsa.models.eval_mode import eval_mode
from mmsa.models.stochastic_depth import no_drop_path
from mmsa.models.timm_cards import class_counts, is_of_classifier, preprocessing_of
from mmsa.models.timm_sources import (
    TIMM_PREFIX,
    Source,
    UnknownName,
    read_timm_file,
    source_of,
    source_of_directory,
    weights_in,
    weights_of,
)
from mmsa.models.timm_stages import recomputed_parts, stages_of
from mmsa.models.weights import State, is_export, misfits
from mmsa.preprocessing import ImagePreprocessing

# Arguments of `timm.create_model` that have their place elsewhere, or would change what is built.
_TAKEN = {
    "num_classes": "the fusion head has the classes",
    "in_chans": "images are RGB",
    "img_size": f"use {IMAGE_SECTION}.image_size_px",
    "pretrained": f"use {IMAGE_SECTION}.weights",
    "checkpoint_path": f"use {IMAGE_SECTION}.weights",
    "pretrained_cfg": f"use {IMAGE_SECTION}.weights",
    "pretrained_cfg_overlay": f"use {IMAGE_SECTION}.weights",
    "cache_dir": "HF_HOME moves the cache",
    "features_only": "an encoder returns one row of features per image",
}


class TimmSettings(EncoderSettings):
    """Arguments of the model's own class (`drop_path_rate`, `depths`), besides those named here."""

    model_config = ConfigDict(frozen=True, extra="allow")

    architecture: str | None = Field(
        None, description="timm's name, where NAME is a repository or a directory"
    )
    timm_version: str | None = Field(None, description="that the export was written with")

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _leaves_out_what_is_taken(self) -> TimmSettings:
        for key in self.arguments:
            if key in _TAKEN:
                raise ValueError(f"{key} is not a setting of an encoder: {_TAKEN[key]}")
        return self


@register_encoder("image", TIMM_PREFIX)
class TimmImages(ImageFamily):
    """Every model of timm, without its classifier: the pooled features, (B, D)."""

    Settings: ClassVar[type[EncoderSettings] | None] = TimmSettings
    _written_with: str | None = None  # the version of timm that an export states

    def build(
        self, config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
    ) -> ImageEncoder:
        if config.drop_path is not None:
            # timm builds no branches that can be left out where the rate is 0.
            values = {**(config.config or {}), "drop_path_rate": config.drop_path}
            config = config.model_copy(update={"drop_path": None, "config": values})
        path = Path(config.weights).expanduser()
        given = config.weights not in ("none", "pretrained")
        if preprocessing is None and given and not is_export(path):
            source = source_of_directory(path)
            if source is not None:  # weights with their own preprocessing
                preprocessing = preprocessing_of(source.card, config.name)
        return super().build(config, preprocessing)

    def _settings(self, config: Any, part: str) -> TimmSettings:
        """With the architecture of a repository or directory, and this version of timm."""
        from timm import __version__

        settings: TimmSettings = super()._settings(config, part)
        self._written_with = settings.timm_version
        if settings.architecture is None:
            source = self._source(self.own_name(config.name))
            if source.architecture != self.own_name(config.name):
                stated = {k: v for k, v in source.arguments.items() if k not in _TAKEN}
                stated |= {"architecture": source.architecture, **settings.arguments}
                settings = TimmSettings.model_validate(stated)
        return settings.model_copy(update={"timm_version": __version__})

    def _source(self, name: str) -> Source:
        """As `source_of`; of an export whose timm had another name, the error says so."""
        from timm import __version__

        try:
            return source_of(name)
        except UnknownName:
            if self._written_with in (None, __version__):
                raise
            raise UserError(
                f"timm {__version__} has no model {name}; the export was written with timm "
                f"{self._written_with}: install that version"
            ) from None

    def preprocessing(self, name: str, settings: Any) -> ImagePreprocessing:
        return preprocessing_of(self._source(name).card, name)

    def network(self, name: str, settings: Any, image_size_px: int) -> Network:
        body = self._body(name, settings, image_size_px)
        width = _width(body, name, image_size_px)
        return Network(body, width, stages_of(body))

    def _body(self, name: str, settings: TimmSettings, side: int, **loading: Any) -> nn.Module:
        """The model without its classifier; with `loading` as `create_model` is told otherwise."""
        architecture = settings.architecture or name
        options = {"num_classes": 0, **settings.arguments, **loading}
        own_side = self._source(architecture).card.get("input_size", (3, 224, 224))[1:]
        resized = {} if tuple(own_side) == (side, side) else {"img_size": (side, side)}
        try:
            model: nn.Module = _created(architecture, options, resized)
            return model
        except Exception as error:  # each model raises its own types
            said = first_line(error, with_type=True)
            if "drop_path_rate" in said:
                raise no_drop_path(settings.arguments["drop_path_rate"], name) from None
            if resized and not isinstance(error, TypeError):
                raise _refused_size(name, side, said) from None
            raise UserError(
                f"{IMAGE_SECTION}.config does not fit timm's {architecture}: {said}. Expected "
                "arguments of its class, as `timm.create_model` takes them"
            ) from None

    def sequence(self, body: Any, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, S, S) -> one row per patch (B, P, D), or a map (B, D, h, w)."""
        found: torch.Tensor = body.forward_features(images)
        if found.dim() == 4 and getattr(body, "output_fmt", "NCHW") == "NHWC":
            return found.flatten(1, 2)
        return found

    def pretrained(self, name: str) -> tuple[State, str]:
        path, where = weights_of(name)
        return read_timm_file(path), where

    def read_weights(self, path: Path, config: Any) -> tuple[State, str]:
        """The tensors of a file as timm writes it, or of a directory with its `config.json`."""
        source = source_of_directory(path)
        if source is None:
            if not path.is_file():
                return super().read_weights(path, config)
            return read_timm_file(path), f"state dict {path}"
        own = source_of(self.own_name(config.name)).architecture.split(".")[0]
        if source.architecture.split(".")[0] != own:
            raise UserError(
                f"{IMAGE_SECTION}.weights={config.weights} are of timm's {source.architecture}, "
                f"and {IMAGE_SECTION}.name is {config.name}; use {IMAGE_SECTION}.name="
                f"{TIMM_PREFIX}{source.architecture}, or other weights"
            )
        return read_timm_file(weights_in(path)), f"state dict {path}"

    def body_state(self, encoder: Any, name: str, state: State) -> State:
        """The tensors of the body under their names there.

        Without the classifier; where that is not enough, as timm itself converts them: other names
        of the same model, position embeddings of another input size.
        """
        settings = TimmSettings.model_validate(encoder.architecture)
        card = source_of(settings.architecture or name).card
        native = {key: value for key, value in state.items() if not is_of_classifier(key, card)}
        if not misfits(encoder.body, native):
            return native
        converted = self._converted(encoder, name, settings, state, card)
        return native if converted is None else converted

    def _converted(
        self, encoder: Any, name: str, settings: TimmSettings, state: State, card: Mapping[str, Any]
    ) -> State | None:
        """The body's tensors as timm's own loading of `state` has them; None where it fails.

        timm loads strictly where it has all classes of the weights, so the classifier is built too.
        """
        from tempfile import TemporaryDirectory

        from safetensors.torch import save_file

        side, own = encoder.preprocessing.image_size_px, encoder.body.state_dict()
        with TemporaryDirectory(prefix="mmsa-timm-") as folder, torch.random.fork_rng(devices=[]):
            file = Path(folder) / "model.safetensors"
            save_file({key: value.contiguous().clone() for key, value in state.items()}, file)
            for num_classes in class_counts(state, card):
                overlay = {"file": str(file), "num_classes": num_classes}
                loading = {"num_classes": num_classes, "pretrained_cfg_overlay": overlay}
                try:
                    full = self._body(name, settings, side, pretrained=True, **loading)
                except (UserError, RuntimeError):
                    continue
                loaded = full.state_dict()
                if own.keys() <= loaded.keys():
                    return {key: loaded[key] for key in own}
        return None

    def _finish(
        self, encoder: Encoder, config: Any, network: Network, *inputs: torch.Tensor
    ) -> None:
        if config.gradient_checkpointing:
            network = replace(network, stages=recomputed_parts(encoder, network.stages, *inputs))
        super()._finish(encoder, config, network, *inputs)


def _created(architecture: str, options: dict[str, Any], resized: dict[str, Any]) -> Any:
    """The model, for another input size where its class takes one.

    Most convolutional networks take any size and have no argument for it.
    """
    import timm

    try:
        return timm.create_model(architecture, **options, **resized)
    except TypeError as error:
        if not resized or "img_size" not in str(error):
            raise
    return timm.create_model(architecture, **options)


def _width(body: nn.Module, name: str, side: int) -> int:
    """D, found by a forward pass, which also shows whether the body takes images of `side`."""
    try:
        with torch.no_grad(), eval_mode(body):
            features = body(torch.zeros(1, 3, side, side))
    except Exception as error:  # the model's code may raise anything
        said = first_line(error, with_type=True)
        raise short_memory(error, f"timm's {name}", side) or _refused_size(
            name, side, said
        ) from None
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        raise UserError(
            f"timm's {name} gives {_shape(features)} for one image, and not one row of features; "
            f"set {IMAGE_SECTION}.config.global_pool (avg, say), or use another encoder"
        )
    return features.shape[1]


def _shape(features: Any) -> str:
    if isinstance(features, torch.Tensor):
        return f"features of shape {tuple(features.shape)}"
    return f"a {type(features).__name__}"


def _refused_size(name: str, side: int, said: str) -> UserError:
    return UserError(
        f"timm's {name} does not take images of {side} px: {said}; set "
        f"{IMAGE_SECTION}.image_size_px to a multiple of its patch or window, or to null for its "
        "own size"
    )
