"""The model of a run with its tokenizer and preprocessing: new ones, or those of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmsa.config import Config, ModelConfig, TextEncoderConfig
from mmsa.data.manifest import Manifest
from mmsa.data.reader import SplitReader
from mmsa.data.text import TextTokenizer, load_tokenizer, word_tokenizer
from mmsa.errors import UserError
from mmsa.export import (
    CHECKPOINT_EXPORT_NAME,
    TOKENIZER_NAME,
    load_model,
    load_tokenizer_of,
    read_export,
)
from mmsa.hub import NotOnThisMachine
from mmsa.lineage import history_of
from mmsa.models.encoder_probes import probe_encoders
from mmsa.models.fusion import fusion_class
from mmsa.models.layer_rates import require_known_layers
from mmsa.models.missing_weights import missing_weights
from mmsa.models.model import SentimentModel, build_model, extension_modules
from mmsa.models.weights import is_export, require_intact_export
from mmsa.preprocessing import Preprocessing
from mmsa.training.checkpoints.average_state import load_live
from mmsa.training.missing_modalities import settle_stand_ins
from mmsa.training.prepared_run import ModelParts
from mmsa.training.warm_start import WarmStart, read_warm_start, with_architectures_of

logger = logging.getLogger("mmsa")

_WORDS_READ = 100_000  # samples of the train split whose words a `words:N` tokenizer counts


def build_or_load(
    config: Config,
    checkpoint: Path | None,
    train: SplitReader,
    manifest: Manifest,
    label_names: Sequence[str],
) -> ModelParts:
    """Model, tokenizer and preprocessing: those of the intact checkpoint, or new ones."""
    if checkpoint is not None:
        export = read_export(checkpoint / CHECKPOINT_EXPORT_NAME)
        model, tokenizer = load_model(export, check=False), load_tokenizer_of(export)
        load_live(model, checkpoint)
        for encoder in (model.text_encoder, model.image_encoder):
            if encoder is not None:
                encoder.source = f"the checkpoint {checkpoint.name}"
        history = history_of(export.facts)
    else:
        start = read_warm_start(config)
        config = settle_stand_ins(config, manifest)
        described = with_real_directories(config.model)
        described = described if start is None else with_architectures_of(start.export, described)
        config = config.model_copy(update={"model": described})
        tokenizer = _new_tokenizer(config, train, len(label_names), start)
        model, history = _new_model(config, label_names, tokenizer, start)
    preprocessing = _preprocessing(config, model, tokenizer, manifest)
    return ModelParts(model, tokenizer, preprocessing, tuple(history))


def _new_model(
    config: Config,
    label_names: Sequence[str],
    tokenizer: TextTokenizer | None,
    start: WarmStart | None,
) -> tuple[SentimentModel, list[dict[str, Any]]]:
    """(the model of a new run, where its weights are from: `WarmStart.history`)."""
    torch.manual_seed(config.run.seed)  # fresh weights are the same on every rank
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    view = None if start is None else start.export.preprocessing.image
    model = build_model(config.model, len(label_names), vocab_size=vocab_size, preprocessing=view)
    # Not of a checkpoint: a run that began without this check can only be resumed as it is.
    require_known_layers(model, config.optim.layer_decay)
    history: list[dict[str, Any]] = []
    if start is not None:
        history = start.history(start.load_into(model, config.model, label_names))
    probe_encoders(model, config.model, config.data.max_tokens)
    return model, history


def _all_missing(
    config: Config, num_classes: int, of_tokenizer: NotOnThisMachine
) -> NotOnThisMachine:
    """What the encoders lack too, so that one command fetches everything."""
    problems = of_tokenizer.problems
    try:
        build_model(config.model, num_classes)
    except NotOnThisMachine as error:
        problems = [*problems, *error.problems]
    except UserError:
        pass  # without the tokenizer's size; reported once the tokenizer is there
    return missing_weights(config.model, problems, extension_modules(config.model))


def with_real_directories(model: ModelConfig) -> ModelConfig:
    """`model` with each export that gives `weights` by its own directory.

    `RUN/best` of a run that is training is a link that moves: architecture, tokenizer and weights
    are read one after the other, and must be of one export.
    """
    changed = {}
    for name in ("text_encoder", "image_encoder"):
        encoder = getattr(model, name)
        path = Path(encoder.weights).expanduser()
        if encoder.weights not in ("none", "pretrained") and is_export(path):
            changed[name] = encoder.model_copy(update={"weights": str(path.resolve())})
    return model.model_copy(update=changed)


def tokenizer_name(encoder: TextEncoderConfig) -> str:
    """The name or directory of a text encoder's tokenizer, or words:N."""
    if encoder.tokenizer is None and encoder.weights not in ("none", "pretrained"):
        # The token ids that these weights were trained with, whatever the shards hold.
        weights = Path(encoder.weights).expanduser()
        if not is_export(weights):
            return str(weights)
        require_intact_export(weights, f"{TOKENIZER_NAME}/")
        return str(weights / TOKENIZER_NAME)
    return encoder.tokenizer or encoder.name


def _new_tokenizer(
    config: Config, train: SplitReader, num_classes: int, start: WarmStart | None
) -> TextTokenizer | None:
    """The tokenizer of a new run; None for a model that reads no text."""
    if not fusion_class(config.model.fusion.name).uses_text:
        return None
    if start is not None and start.tokenizer is not None:
        return start.tokenizer
    try:
        return _tokenizer(config, train)
    except NotOnThisMachine as error:
        raise _all_missing(config, num_classes, error) from None


def _tokenizer(config: Config, train: SplitReader) -> TextTokenizer:
    name, max_tokens = tokenizer_name(config.model.text_encoder), config.data.max_tokens
    if name.startswith("words:"):
        if not name[6:].isdecimal() or int(name[6:]) < 1:
            raise UserError(
                f"model.text_encoder.tokenizer={name!r}: expected words:N, as in words:8000"
            )
        texts = (train.read(*place).text for place in islice(train.places(), _WORDS_READ))
        return word_tokenizer(texts, int(name[6:]), max_tokens)
    return load_tokenizer(name, max_tokens)


def _preprocessing(
    config: Config, model: SentimentModel, tokenizer: TextTokenizer | None, manifest: Manifest
) -> Preprocessing:
    text_encoder, image_encoder = model.text_encoder, model.image_encoder
    max_tokens = None
    if text_encoder is not None:
        max_tokens = config.data.max_tokens
        if text_encoder.max_positions is not None and max_tokens > text_encoder.max_positions:
            raise UserError(
                f"data.max_tokens={max_tokens}, but {config.model.text_encoder.name} reads "
                f"{text_encoder.max_positions} tokens at most; use data.max_tokens="
                f"{text_encoder.max_positions} or fewer"
            )
    packed_px = manifest.packing["image_short_side_px"]  # None: original images
    image = None if image_encoder is None else image_encoder.preprocessing
    if image is not None and packed_px is not None and image.image_size_px > packed_px:
        logger.warning(
            "the image encoder takes %d px and the images are packed with a short side of %d px, "
            "so each one is enlarged. Pack with --image-short-side %d for sharper images",
            image.image_size_px,
            packed_px,
            image.resize_px,
        )
    if image is not None and image.squeezes and config.data.image_view == "crop":
        logger.warning(
            "the image processor of %s squeezes the whole image to a square, and "
            "data.image_view=crop shows the encoder its centre; data.image_view=whole does what "
            "its processor does",
            config.model.image_encoder.name,
        )
    return Preprocessing(
        image=image,
        image_view=config.data.image_view,
        packed_mode=manifest.packing.get("image_mode", "short_side"),
        packed_short_side_px=packed_px,
        packed_normalize=tuple(manifest.source.get("facts", {}).get("normalize", ())),
        packed_quality=int(manifest.packing["image_quality"]),
        max_tokens=max_tokens,
        truncation_side="right" if tokenizer is None else tokenizer.truncation_side,
    )
