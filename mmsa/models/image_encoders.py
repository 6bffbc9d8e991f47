"""Image encoders: torchvision's and Hugging Face's, from uint8 pictures to one row each.

Shapes: B batch, S input side in pixels, D features.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import torchvision_state
from mmsa.models.encoders import HF_PREFIX, IMAGE_SECTION, ImageEncoder, trained_parts
from mmsa.models.hf_image_encoders import build_hf_image_encoder
from mmsa.models.recompute import recompute_in_backward
from mmsa.models.weights import (
    export_preprocessing,
    is_export,
    load_strictly,
    read_state,
)
from mmsa.preprocessing import ImagePreprocessing


@dataclass(frozen=True)
class _Family:
    """How torchvision's models of one kind are taken apart."""

    strip: Callable[[Any], None]  # removes the classifier
    layers: Callable[[Any], list[Any]]  # stages from the input on, for last_n
    above: Callable[[Any], list[nn.Module]]  # norms behind the last stage
    classifier: tuple[str, ...]  # how the classifier's tensors begin in a state dict


def _strip(name: str) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, nn.Identity())


def _strip_convnext(model: Any) -> None:
    model.classifier[2] = nn.Identity()  # its norm and flattening stay


def _convnext_stages(model: Any) -> list[list[nn.Module]]:
    # A stem or a downsampling, then blocks, four times over.
    children = list(model.features)
    return [children[at : at + 2] for at in range(0, len(children), 2)]


_FAMILIES: dict[str, _Family] = {
    "resnet": _Family(
        strip=_strip("fc"),
        layers=lambda model: [model.layer1, model.layer2, model.layer3, model.layer4],
        above=lambda model: [],
        classifier=("fc.",),
    ),
    "mobilenet_v2": _Family(
        strip=_strip("classifier"),
        layers=lambda model: list(model.features),
        above=lambda model: [],
        classifier=("classifier.",),
    ),
    "vit_": _Family(
        strip=_strip("heads"),
        layers=lambda model: list(model.encoder.layers),
        above=lambda model: [model.encoder.ln],
        classifier=("heads.",),
    ),
    "convnext_": _Family(
        strip=_strip_convnext,
        layers=_convnext_stages,
        above=lambda model: [model.classifier[0]],
        classifier=("classifier.2.",),
    ),
}


def torchvision_names() -> list[str]:
    """The names of torchvision's models that can be used as `model.image_encoder.name`."""
    from torchvision.models import list_models

    return [name for name in list_models() if name.startswith(tuple(_FAMILIES))]


def build_image_encoder(
    config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None = None
) -> ImageEncoder:
    """Build the encoder of `config`, with its weights, and freeze what is not trained.

    `preprocessing` replaces the encoder's own (an export brings the one that it was trained with).
    Fresh weights come from torch's global generator: the caller seeds it.

    Raises `UserError` for weights that cannot be had or do not fit, and for wrong settings.
    """
    if config.name.startswith(HF_PREFIX):
        encoder = build_hf_image_encoder(config, preprocessing)
    else:
        encoder = _build_torchvision(config, preprocessing)
    if config.batch_norm == "frozen":
        encoder.freeze_statistics()
    return encoder


def _build_torchvision(
    config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
) -> ImageEncoder:
    from torchvision.models import get_model, get_model_weights

    family = _family(config)
    enum = get_model_weights(config.name).DEFAULT
    brought = (preprocessing or _brought(config, enum)).at_size(config.image_size_px)
    is_vit = config.name.startswith("vit_")
    options = {"image_size": brought.image_size_px} if is_vit else {}
    try:
        body = get_model(config.name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{config.name} does not take pictures of {brought.image_size_px} px: {error}; set "
            f"{IMAGE_SECTION}.image_size_px to a multiple of its patch (16, 32 or 14), or to null"
        ) from None
    body_width = _classifier_width(body)
    family.strip(body)
    encoder = ImageEncoder(
        body, body_width=body_width, projection=config.projection, preprocessing=brought
    )
    _load_torchvision(encoder, config, family, enum)
    layers = family.layers(body)
    trained = trained_parts(
        config.train,
        config.last_n,
        body=body,
        layers=layers,
        above=family.above(body),
        section=IMAGE_SECTION,
    )
    encoder.train_only(trained)
    if config.gradient_checkpointing:
        recompute_in_backward(layers, section=IMAGE_SECTION)
    return encoder


def _family(config: ImageEncoderConfig) -> _Family:
    names = torchvision_names()
    if config.name not in names:
        near = difflib.get_close_matches(config.name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
        raise UserError(
            f"{IMAGE_SECTION}.name={config.name!r} is no image encoder; {hint} "
            f"(a Hugging Face one is written {HF_PREFIX}NAME)"
        )
    if config.config is not None:
        raise UserError(
            f"{IMAGE_SECTION}.config is for {HF_PREFIX}NAME; torchvision's {config.name} has its "
            "sizes in its name. Take the key out"
        )
    return next(family for start, family in _FAMILIES.items() if config.name.startswith(start))


def _brought(config: ImageEncoderConfig, enum: Any) -> ImagePreprocessing:
    """The numbers of the export to be loaded, else those of torchvision's weights (no download)."""
    path = Path(config.weights).expanduser()
    if config.weights not in ("none", "pretrained") and is_export(path):
        return export_preprocessing(path)
    transforms = enum.transforms()
    return ImagePreprocessing(
        image_size_px=transforms.crop_size[0],
        resize_px=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _classifier_width(model: nn.Module) -> int:
    """The number of features that the classifier, the last linear layer, takes."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].in_features


def _load_torchvision(
    encoder: ImageEncoder, config: ImageEncoderConfig, family: _Family, enum: Any
) -> None:
    if config.weights == "none":
        return
    if config.weights == "pretrained":
        state, where = torchvision_state(enum), f"the weights {enum}"
        encoder.source = f"pretrained, torchvision {enum}"
    else:
        path = Path(config.weights).expanduser()
        if is_export(path):
            encoder.load_export(path, "image_encoder")
            return
        if not path.is_file():
            raise UserError(
                f"{IMAGE_SECTION}.weights={config.weights}: no export (model.safetensors, as in "
                "RUN/best) and no .safetensors or .pth file is there; give one, or pretrained, "
                "or none"
            )
        state, where = read_state(path), f"the weights {path}"
        encoder.source = f"state dict {path}"
    body_state = {key: v for key, v in state.items() if not key.startswith(family.classifier)}
    if config.name.startswith("vit_"):
        body_state = _positions_at_size(encoder, body_state)
    load_strictly(encoder.body, body_state, where=where)


def _positions_at_size(encoder: ImageEncoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Position embeddings learned at another input size, interpolated to this one."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    body: Any = encoder.body
    return interpolate_embeddings(encoder.preprocessing.image_size_px, body.patch_size, state)
