"""Text encoders of Hugging Face, by name or directory, or by their sizes with fresh weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from mmsa.config import TextEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import from_hub
from mmsa.models.blank import is_blank
from mmsa.models.dual_encoders import (
    Part,
    TextsOfFullLength,
    begin_with,
    part_of,
    plain_pooling,
    projection_width,
    sizes_of,
    text_body,
)
from mmsa.models.encoder_families import (
    EncoderSettings,
    Network,
    TextFamily,
    register_encoder,
)
from mmsa.models.encoders import TEXT_SECTION, leave_out_unused
from mmsa.models.hf_config import hf_config_from_dict, hf_config_to_dict
from mmsa.models.recompute import recompute_in_backward
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.text_pooling import Pooling, token_width
from mmsa.models.weights import export_encoder_config, is_export


@register_encoder("text", "")
class HuggingFaceTexts(TextFamily):
    """Every name without a prefix of another family: a Hugging Face name or directory."""

    Settings: ClassVar[type[EncoderSettings] | None] = None  # the sizes of the model's type

    def build(self, config: TextEncoderConfig, vocab_size: int | None) -> TextEncoder:
        part, source = _part(config, vocab_size)
        body = text_body(part)
        sizes: Any = body.config
        pooling = self._pooling(config, body)
        encoder = TextEncoder(
            body,
            pooling=pooling,
            projection=projection_width(part, config, TEXT_SECTION),
            width=token_width(
                body, sizes.vocab_size, section=TEXT_SECTION, of_texts=pooling == "own"
            ),
            vocab_size=sizes.vocab_size,
        )
        if config.projection == "own":
            begin_with(encoder.projection, part.projection)
        encoder.architecture = _described(part, sizes.vocab_size)
        encoder.check_vocabulary(vocab_size)
        if source is None:  # an export
            encoder.load_export(Path(config.weights).expanduser(), "text_encoder")
        else:
            encoder.source = source
        layers, above = _layers(body)
        self._choose_trained(encoder, config, Network(body, encoder.width, layers, above))
        if not is_blank():  # probes of what the encoder computes belong here
            encoder.look_at_order()
            if pooling != "own":
                encoder.look_at_masks()
        tokens = torch.zeros(1, 4, dtype=torch.long)
        leave_out_unused(encoder, tokens, torch.ones_like(tokens))
        if config.gradient_checkpointing:
            recompute_in_backward(layers, section=TEXT_SECTION)
        return encoder

    def _pooling(self, config: TextEncoderConfig, body: nn.Module) -> Literal["auto"] | Pooling:
        """With `auto` that of a body that pools by itself."""
        if not isinstance(body, TextsOfFullLength):
            return plain_pooling(config, TEXT_SECTION)
        return "own" if config.pooling == "auto" else config.pooling


def _described(part: Part, vocab_size: int) -> dict[str, Any]:
    """What builds the body again, always with the number of ids: else a tokenizer would set it."""
    described = hf_config_to_dict(part.described)
    sizes = sizes_of(part.described, "text")
    if sizes is part.described:
        return {**described, "vocab_size": vocab_size}
    return {
        **described,
        "text_config": described.get("text_config", {}) | {"vocab_size": vocab_size},
    }


def _part(config: TextEncoderConfig, vocab_size: int | None) -> tuple[Part, str | None]:
    """The network and the source of its weights; None where an export is still to be loaded."""
    if config.weights == "none":
        return _fresh(_architecture(config, vocab_size, None)), "fresh (seeded)"
    if config.weights == "pretrained":
        if config.config is not None:
            raise UserError(
                f"{TEXT_SECTION}.config is for {TEXT_SECTION}.weights: none or an export; "
                "pretrained weights bring their own. Take one of the two out"
            )
        return _pretrained(config.name), f"pretrained from {config.name}"
    path = Path(config.weights).expanduser()
    if is_export(path):
        return _fresh(_architecture(config, vocab_size, path)), None
    if (path / "config.json").is_file():
        if config.config is not None:
            raise UserError(
                f"{TEXT_SECTION}.config is for {TEXT_SECTION}.weights: none or an export; {path} "
                "brings its own. Take one of the two out"
            )
        return _pretrained(str(path)), f"pretrained from {path}"
    raise UserError(
        f"{TEXT_SECTION}.weights={config.weights}: found neither an export (model.safetensors, "
        "as in RUN/best) nor a Hugging Face directory (config.json); give one, or pretrained, or "
        "none"
    )


def _architecture(config: TextEncoderConfig, vocab_size: int | None, export: Path | None) -> Any:
    from transformers import AutoConfig

    sizes = config.config
    if sizes is None and export is not None:
        sizes = export_encoder_config(export, "text_encoder")
    if sizes is None:
        architecture = from_hub(AutoConfig.from_pretrained, config.name)
    else:
        architecture = hf_config_from_dict(sizes, section=TEXT_SECTION)
    stated = {**(sizes or {}), **((sizes or {}).get("text_config") or {})}
    if vocab_size is not None and export is None and "vocab_size" not in stated:
        sizes_of(architecture, "text").vocab_size = vocab_size
    return architecture


def _fresh(architecture: Any) -> Part:
    from transformers import AutoModel

    try:
        model = AutoModel.from_config(architecture)
    except Exception as error:  # each class raises its own types
        raise UserError(
            f"{TEXT_SECTION}.config: no encoder can be built from it: {str(error).strip()}"
        ) from None
    return _encoder_part(model)


def _pretrained(name: str) -> Part:
    from transformers import AutoModel

    model, info = from_hub(
        lambda place, **options: AutoModel.from_pretrained(
            place, output_loading_info=True, **options
        ),
        name,
    )
    part = _encoder_part(model)
    own = {part.prefix + key for key, _ in part.model.named_parameters()}
    missing = sorted(own & set(info["missing_keys"]))
    if missing:
        raise UserError(
            f"the weights of {name} lack {len(missing)} tensors of the encoder ({missing[0]}, ...);"
            " they would stay random. Give complete weights, or weights: none"
        )
    if isinstance(text_body(part), TextsOfFullLength):
        _pad_as_the_tokenizer(part.model, name)
    return part


def _pad_as_the_tokenizer(model: Any, name: str) -> None:
    """Let `model` read the padding that it was trained with: its configuration may not say which.

    SigLIP 2 has the tokenizer of Gemma, and in its configuration SigLIP's id.
    """
    from transformers import AutoTokenizer

    try:
        pad = from_hub(AutoTokenizer.from_pretrained, name).pad_token_id
    except UserError:  # it has none, and another one is given
        return
    if pad is not None:
        model.config.pad_token_id = pad


def _encoder_part(model: Any) -> Part:
    """The part that reads text, in float32, without decoder and pooler (which gets no gradient).

    It keeps no keys and values for texts to come: a generating model would at each forward.
    """
    model_type, part = model.config.model_type, part_of(model, "text")
    if part.prefix:
        model = part.model
    elif model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    sizes: Any = getattr(model, "config", None)  # an encoder of FSMT has none
    if not hasattr(sizes, "hidden_size") or not hasattr(sizes, "vocab_size"):
        raise UserError(
            f"{TEXT_SECTION}: a model of type '{model_type}' is not a text encoder; "
            "use one such as bert-base-uncased"
        )
    model.config.use_cache = False
    model = model.float()
    return replace(part, model=model, described=part.described if part.prefix else model.config)


def _layers(body: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """The transformer layers from the input on, and the norms after them."""
    number = getattr(body.config, "num_hidden_layers", None)
    layers: nn.ModuleList | None = None
    above: list[nn.Module] = []
    for name, module in body.named_modules():
        if layers is None and isinstance(module, nn.ModuleList) and len(module) == number:
            layers = module
            inside = set(module.modules())
        elif layers is None or module in inside:
            continue
        elif "Norm" in type(module).__name__ or name.split(".")[-1] == "head":
            above.append(module)
    return ([], []) if layers is None else (list(layers), above)
