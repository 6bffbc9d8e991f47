"""From the configuration of an encoder to the encoder, by the family of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Imported to register the families of this package.
import mmsa.models.hf_image_encoders
import mmsa.models.hf_text_encoders
import mmsa.models.timm_encoders
import mmsa.models.torchvision_encoders  # noqa: F401
from mmsa.config import FusionConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig
from mmsa.errors import UserError
from mmsa.foundation.registry import IMPORT_HINT, nearest, section_of
from mmsa.models.encoder_families import (
    ENCODERS,
    SECTIONS,
    ImageFamily,
    Modality,
    family_class,
)
from mmsa.models.encoders import IMAGE_SECTION, TEXT_SECTION, ImageEncoder
from mmsa.models.fusion import FUSIONS
from mmsa.models.fusion.sequences import no_sequence
from mmsa.models.hf_config import HF_PREFIX
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.timm_sources import TIMM_PREFIX
from mmsa.preprocessing import ImagePreprocessing


def build_text_encoder(
    config: TextEncoderConfig, vocab_size: int | None = None, *, sequences: bool = False
) -> TextEncoder:
    """Build the encoder of `config` with its weights, and freeze what is not trained.

    `vocab_size` is the number of ids of the tokenizer: fresh weights are made for it unless the
    configuration gives a number; an encoder with fewer is refused. Fresh weights come from torch's
    global generator, which the caller seeds. With `sequences` it gives a row for each token.

    Raises `UserError` for weights that cannot be loaded or do not fit, and for wrong settings.
    """
    encoder: TextEncoder = _family("text", config.name, config.config).build(config, vocab_size)
    if sequences:
        encoder.begin_sequences(f"{SECTIONS['text']} ({config.name})")
    return encoder


def build_image_encoder(
    config: ImageEncoderConfig,
    preprocessing: ImagePreprocessing | None = None,
    *,
    sequences: bool = False,
) -> ImageEncoder:
    """Build the encoder of `config` with its weights, and freeze what is not trained.

    `preprocessing` replaces the encoder's own (an export has that of its training). Fresh weights
    come from torch's global generator, which the caller seeds. With `sequences` it gives a row for
    each patch or position.

    Raises `UserError` for weights that cannot be loaded or do not fit, for wrong settings, and
    where there are no sequences to give.
    """
    family = _family("image", config.name, config.config)
    names = family.names()
    if names and not names[0].endswith("NAME") and config.name not in names:
        raise UserError(_unknown("image", config.name))
    if sequences and not _has_sequences(type(family)):
        raise UserError(no_sequence(f"{SECTIONS['image']}.name={config.name}"))
    encoder: ImageEncoder = family.build(config, preprocessing)
    if sequences:
        encoder.begin_sequences(family.sequence, f"{SECTIONS['image']} ({config.name})")
    if config.batch_norm == "frozen":
        encoder.freeze_statistics()
    return encoder


def encoder_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: the encoders' families and their own settings."""
    model = section_of(raw, "model")
    head = FUSIONS.get(section_of(model, "fusion").get("name", FusionConfig().name))
    used = {"text": head is None or head.uses_text, "image": head is None or head.uses_image}
    problems: list[str] = []
    sequences = head is not None and head.takes == "sequences"
    for modality in ENCODERS:
        chosen = section_of(model, f"{modality}_encoder")
        default = getattr(ModelConfig(), f"{modality}_encoder")
        name, values = chosen.get("name", default.name), chosen.get("config")
        if used[modality] and isinstance(name, str):
            problems += _problems(modality, name, values, chosen)
            family = family_class(modality, name)
            if sequences and family is not None and not _has_sequences(family):
                problems.append(no_sequence(f"{SECTIONS[modality]}.name={name}"))
    return problems


def families_of(config: ModelConfig, *, text: bool, image: bool) -> list[type[Any]]:
    """The families of the encoders that a model of `config` uses."""
    used = [family_class("text", config.text_encoder.name)] if text else []
    used += [family_class("image", config.image_encoder.name)] if image else []
    return [family for family in used if family is not None]


def _problems(modality: Modality, name: str, values: Any, chosen: dict[str, Any]) -> list[str]:
    if _is_unknown(modality, name, values):
        return [_unknown(modality, name)]
    family_type = family_class(modality, name)
    if family_type is None or family_type.Settings is None:
        return []
    problems: list[str] = family_type().problems(values if isinstance(values, dict) else {})
    tokenizer = chosen.get("tokenizer")
    weights = chosen.get("weights", TextEncoderConfig().weights)
    if modality == "text" and tokenizer is None and weights in ("none", "pretrained"):
        problems.append(
            f"model.text_encoder.tokenizer is not given, and {name} has none of its own; add "
            "model.text_encoder.tokenizer=words:8000, or a Hugging Face name or directory"
        )
    return problems


def last_n_without_effect(config: ModelConfig) -> list[str]:
    """A sentence for each encoder whose `last_n` reads as if the rest were frozen, and is not used.

    No error: a search or a study varies `train` and leaves `last_n` as it is.
    """
    encoders: dict[str, TextEncoderConfig | ImageEncoderConfig] = {
        TEXT_SECTION: config.text_encoder,
        IMAGE_SECTION: config.image_encoder,
    }
    return [
        f"{section}.last_n={one.last_n} has no effect with {section}.train={one.train}; "
        f"{section}.train=last_n would train the last {one.last_n} alone"
        for section, one in encoders.items()
        if one.last_n and one.train != "last_n"
    ]


def _has_sequences(family: type[Any]) -> bool:
    """Whether its encoders have a row for each token, patch or position; all texts have tokens."""
    return not issubclass(family, ImageFamily) or family.sequence is not ImageFamily.sequence


def _family(modality: Modality, name: str, values: Any) -> Any:
    family = family_class(modality, name)
    if family is None or _is_unknown(modality, name, values):
        raise UserError(_unknown(modality, name))
    return family()


def _is_unknown(modality: Modality, name: str, values: Any) -> bool:
    family = family_class(modality, name)
    if family is None:
        return True
    # Every name of a text encoder begins with the empty prefix of transformers' names. None of
    # those has a colon, but with sizes under `config` the name is a mere label.
    is_label = isinstance(values, dict) and "model_type" in values
    return family.prefix == "" and ":" in name and not is_label and not Path(name).is_dir()


def _unknown(modality: Modality, name: str) -> str:
    problem = f"{SECTIONS[modality]}.name={name!r} is not {_ARTICLES[modality]} encoder"
    if modality == "text":
        return f"{problem}: no encoders are registered as '{name.split(':')[0]}:'; {IMPORT_HINT}"
    names = sorted(one for family in ENCODERS["image"].values() for one in family().names())
    return (
        f"{problem}; {nearest(name, names)} (one of timm is written {TIMM_PREFIX}NAME, a Hugging "
        f"Face one {HF_PREFIX}NAME)"
    )


_ARTICLES: dict[Modality, str] = {"text": "a text", "image": "an image"}
