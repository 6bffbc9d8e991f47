"""Families of encoders: how an encoder's name leads to the network, its weights and its export.

A family owns the names with its prefix (`hf:`, `resnet`, `mine:`) in one modality and is registered
by `register_encoder`. `TextFamily` and `ImageFamily` do what all encoders have in common (with
`encoder_family.py`): the projection, weights from exports and state dicts, freezing, gradient
checkpointing, and the description in an export. A subclass gives the network.

Shapes: B batch, T tokens, S input side in pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.errors import UserError
from mmsa.foundation.registry import Registry
from mmsa.models.blank import is_blank
from mmsa.models.dual_encoders import plain_pooling, plain_projection
from mmsa.models.encoder_family import (
    SECTIONS,
    EncoderConfig,
    EncoderFamily,
    EncoderSettings,
    Modality,
    Network,
    TextEncoderSettings,
)
from mmsa.models.encoders import IMAGE_SECTION, TEXT_SECTION, ImageEncoder
from mmsa.models.stochastic_depth import set_drop_path
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.weights import export_preprocessing, is_export
from mmsa.preprocessing import ImagePreprocessing

# What a family is written with, all from here.
__all__ = [
    "ENCODERS",
    "SECTIONS",
    "EncoderConfig",
    "EncoderFamily",
    "EncoderSettings",
    "ImageFamily",
    "Modality",
    "Network",
    "TextEncoderSettings",
    "TextFamily",
    "family_class",
    "register_encoder",
]


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
            pooling=plain_pooling(config, self.section),
            projection=plain_projection(config, self.section),
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

    def sequence(self, body: Any, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, S, S) -> one row per patch or position (B, P, D), for heads that
        take sequences; also as a map (B, D, height, width).

        It runs as `body.forward`, so it must not call `body` itself. A family without this method
        has one row per image.
        """
        raise NotImplementedError

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
            projection=plain_projection(config, self.section),
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
