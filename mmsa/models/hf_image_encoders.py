"""Image encoders of Hugging Face: `hf:NAME`, or sizes with fresh weights.

Shapes: B batch, S input side in pixels, T patches, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import IMAGE_PARTS, from_hub
from mmsa.models.dual_encoders import (
    Part,
    begin_with,
    inputs_of_patches,
    part_of,
    projection_width,
    sizes_of,
)
from mmsa.models.encoder_families import EncoderSettings, ImageFamily, Network, register_encoder
from mmsa.models.encoder_family import short_memory
from mmsa.models.encoders import IMAGE_SECTION, ImageEncoder
from mmsa.models.hf_config import HF_PREFIX, hf_config_from_dict, hf_config_to_dict
from mmsa.models.hf_image_processors import read_processor
from mmsa.models.stochastic_depth import set_drop_path_of
from mmsa.models.weights import (
    export_encoder_config,
    export_preprocessing,
    is_export,
)
from mmsa.preprocessing import ImagePreprocessing


class HfImageBody(nn.Module):
    """A Hugging Face vision model that returns one row per image, (B, D).

    Its pooled output where it has one, else the mean over its patches or positions. A masked
    autoencoder (ViT-MAE) sees all patches, in their order: in eval mode too it would mask three
    quarters of them at random.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._masks = hasattr(getattr(model, "config", None), "mask_ratio")
        if self._masks:
            model.config.mask_ratio = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> (B, D)."""
        output = self._output(images)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)  # convolutional models pool to (B, D, 1, 1)
        hidden = output.last_hidden_state  # (B, T, D) or (B, D, height, width)
        return hidden.mean(dim=1) if hidden.dim() == 3 else hidden.mean(dim=(2, 3))

    def rows(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> one row per patch (B, P, D), or a map of positions."""
        rows: Tensor = self._output(images).last_hidden_state
        return rows

    def _output(self, images: Tensor) -> Any:
        inputs = inputs_of_patches(self.model, images) or {"pixel_values": images}
        options = {"noise": self._order(images)} if self._masks else {}
        return self.model(**inputs, **options)

    def _order(self, images: Tensor) -> Tensor:
        """What a masked autoencoder sorts its patches by: their place, (B, patches)."""
        num_patches = (images.shape[-1] // self.model.config.patch_size) ** 2
        places = torch.arange(num_patches, dtype=torch.float32, device=images.device)
        return places.expand(images.shape[0], num_patches)


@register_encoder("image", HF_PREFIX)
class HuggingFaceImages(ImageFamily):
    """`hf:NAME`: a Hugging Face name or directory."""

    Settings: ClassVar[type[EncoderSettings] | None] = None  # the sizes of the model's type

    def build(
        self, config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
    ) -> ImageEncoder:
        part, found, source = _model(config, preprocessing)
        model = part.model
        found = found.at_size(config.image_size_px)
        body = HfImageBody(model)
        encoder = ImageEncoder(
            body,
            body_width=_body_width(body, found.image_size_px, config.name),
            projection=projection_width(part, config, IMAGE_SECTION),
            preprocessing=found,
        )
        if config.projection == "own":
            begin_with(encoder.projection, part.projection)
        encoder.architecture = hf_config_to_dict(part.described)
        if source is None:
            encoder.load_export(Path(config.weights).expanduser(), "image_encoder")
        else:
            encoder.source = source
        layers, above = _layers(model)
        network = Network(body, encoder.width, layers, above)
        self._choose_trained(encoder, config, network)
        side = encoder.preprocessing.image_size_px
        self._finish(encoder, config, network, torch.zeros(1, 3, side, side, dtype=torch.uint8))
        return encoder

    def sequence(self, body: HfImageBody, images: Tensor) -> Tensor:
        return body.rows(images)


def _model(
    config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
) -> tuple[Part, ImagePreprocessing, str | None]:
    """The network, its preprocessing, and where its weights came from (None: from an export)."""
    name = config.name.removeprefix(HF_PREFIX)
    if config.weights == "pretrained":
        if config.config is not None:
            raise UserError(
                f"{IMAGE_SECTION}.config is for {IMAGE_SECTION}.weights: none or an export; "
                "pretrained weights bring their own. Take one of the two out"
            )
        model = _pretrained(name, config.drop_path)
        return model, preprocessing or read_processor(name), f"pretrained from {name}"
    if config.weights == "none":
        return *_fresh(config, preprocessing, config.config), "fresh (seeded)"
    path = Path(config.weights).expanduser()
    if is_export(path):
        sizes = config.config or export_encoder_config(path, "image_encoder")
        return *_fresh(config, preprocessing or export_preprocessing(path), sizes), None
    if (path / "config.json").is_file():
        place = str(path)
        return (
            _pretrained(place, config.drop_path),
            preprocessing or read_processor(place),
            f"pretrained from {place}",
        )
    raise UserError(
        f"{IMAGE_SECTION}.weights={config.weights}: found neither an export (model.safetensors, "
        "as in RUN/best) nor a Hugging Face directory (config.json); give one, or pretrained, or "
        "none"
    )


def _fresh(
    config: ImageEncoderConfig,
    preprocessing: ImagePreprocessing | None,
    sizes: dict[str, Any] | None,
) -> tuple[Part, ImagePreprocessing]:
    from transformers import AutoConfig, AutoModel

    if sizes is None:
        name = config.name.removeprefix(HF_PREFIX)
        architecture = from_hub(AutoConfig.from_pretrained, name, IMAGE_PARTS)
        brought = preprocessing or read_processor(name)
    else:
        architecture = hf_config_from_dict(sizes, section=IMAGE_SECTION)
        brought = preprocessing or ImagePreprocessing()
    of_images = sizes_of(architecture, "image")
    if isinstance(getattr(of_images, "image_size", None), int) and config.image_size_px:
        of_images.image_size = config.image_size_px
    set_drop_path_of(of_images, config.drop_path, name=config.name)
    try:
        return _image_part(AutoModel.from_config(architecture)), brought
    except Exception as error:  # each class raises its own types
        raise UserError(
            f"{IMAGE_SECTION}.config: no encoder can be built from it: {str(error).strip()}"
        ) from None


def _pretrained(name: str, drop_path: float | None) -> Part:
    from transformers import AutoConfig, AutoModel

    changed: dict[str, Any] = {}
    if drop_path is not None:
        changed["config"] = from_hub(AutoConfig.from_pretrained, name, IMAGE_PARTS)
        set_drop_path_of(sizes_of(changed["config"], "image"), drop_path, name=name)
    model, info = from_hub(
        lambda place, **options: AutoModel.from_pretrained(
            place, output_loading_info=True, **changed, **options
        ),
        name,
        IMAGE_PARTS,
    )
    part = _image_part(model)
    model = part.model
    own = {part.prefix + key for key, _ in model.named_parameters()}
    missing = sorted(set(info["missing_keys"]) & own)
    if missing and all(key.startswith(f"{part.prefix}pooler.") for key in missing):
        model.pooler = None  # saved without a pooler: use the mean instead of random weights
    elif missing:
        raise UserError(
            f"the weights of {name} lack {len(missing)} tensors of the encoder ({missing[0]}, ...);"
            " they would stay random. Give complete weights, or weights: none"
        )
    return part


def _image_part(model: Any) -> Part:
    """The vision part, in float32, of a model that may also have a text part."""
    part = part_of(model, "image")
    part.model.float()
    return part


def _layers(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """The stages or layers from the input on, and the norms and poolers after them."""
    layers: nn.ModuleList | None = None
    above: list[nn.Module] = []
    for name, module in model.named_modules():
        if layers is None and isinstance(module, nn.ModuleList) and len(module):
            layers = module
            inside = set(module.modules())
        elif layers is None or module in inside:
            continue
        elif "Norm" in type(module).__name__ or name in ("pooler", "head"):
            above.append(module)
    return ([], []) if layers is None else (list(layers), above)


def _body_width(body: HfImageBody, image_size_px: int, name: str) -> int:
    """D, found by a forward pass: configurations have a dozen names for it."""
    body.eval()
    try:
        with torch.no_grad():
            return body(torch.zeros(1, 3, image_size_px, image_size_px)).shape[1]
    except Exception as error:  # the model's code may raise anything
        raise short_memory(error, name, image_size_px) or UserError(
            f"{name} does not take images of {image_size_px} px: {error}; set "
            f"{IMAGE_SECTION}.image_size_px: null for its own size"
        ) from None
    finally:
        body.train()
