"""Before the first step of a new run: what its exports will say must build this very model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mmsa.config import Config, load_config
from mmsa.data.text import TextTokenizer, load_tokenizer
from mmsa.errors import UserError
from mmsa.export import CONFIG_NAME, TOKENIZER_NAME, write_architecture
from mmsa.models.blank import blank_weights
from mmsa.models.eval_mode import eval_mode
from mmsa.models.model import SentimentModel, build_model
from mmsa.models.weights import load_strictly
from mmsa.preprocessing import Preprocessing, read_preprocessing
from mmsa.training.prepared_run import ModelParts

# Cases, accents, marks, an emoji of several code points, an address, other scripts, no text at all,
# and more tokens than most limits.
PROBE_TEXTS = (
    "Best day ever!! :) \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16} #sunny @somebody",
    "d\u00e9j\u00e0 vu, http://t.co/x1  MADE-UP \u65e5\u672c\u8a9e \u0440\u0443\u0441 1,234.5",
    "",
    "not so good " * 200,
)
_NUM_TOKENS = 16  # of each text that the models are compared on: a large model takes a second
_RTOL, _ATOL = 1e-4, 1e-6  # the same weights and kernels: in general there is no difference


def check_read_back(config: Config, parts: ModelParts, num_classes: int) -> None:
    """Raise `UserError` where an export of this run could not be read, or would be another model.

    Configuration, preprocessing and tokenizer are written as an export has them and read again;
    a model is built of them, takes the weights by name and shape, and must give the same outputs in
    eval mode. Needs no second copy of the weights, no collective and no device, and changes nothing
    in the model or in the generators. Every rank finds the same.
    """
    try:
        with TemporaryDirectory(prefix="mmsa-read-back-") as folder:
            described, preprocessing, tokenizer = _written_and_read(config, parts, Path(folder))
        _compare_tokenizers(parts.tokenizer, tokenizer)

        def build() -> SentimentModel:
            return build_model(described.model, num_classes, preprocessing=preprocessing.image)

        _compare_models(parts, build)
    except UserError as error:
        raise UserError(
            f"this run's exports could not be read back: {error}. Nothing was trained. Choose "
            f"another encoder or tokenizer than {_names(config, parts.model)}, or report this with "
            "the files config.json and tokenizer_config.json of what you use"
        ) from None


def _names(config: Config, model: SentimentModel) -> str:
    """What was chosen, as text."""
    names = []
    if model.text_encoder is not None:
        names.append(config.model.text_encoder.name)
    if model.image_encoder is not None:
        names.append(config.model.image_encoder.name)
    return " and ".join(names)


def _written_and_read(
    config: Config, parts: ModelParts, folder: Path
) -> tuple[Config, Preprocessing, TextTokenizer | None]:
    """Configuration, preprocessing and tokenizer after a way through the files of an export."""
    write_architecture(folder, parts.model, config, parts.preprocessing, parts.tokenizer)
    tokenizer, preprocessing = None, read_preprocessing(folder)
    if parts.tokenizer is not None:
        place, side = str(folder / TOKENIZER_NAME), preprocessing.truncation_side
        tokenizer = load_tokenizer(place, config.data.max_tokens, side)
    return load_config(str(folder / CONFIG_NAME)), preprocessing, tokenizer


def _compare_tokenizers(tokenizer: TextTokenizer | None, again: TextTokenizer | None) -> None:
    if tokenizer is None or again is None:
        return
    if again.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, and {again.vocab_size} after it was "
            "saved"
        )
    for text in PROBE_TEXTS:
        before, after = (one([text])[0][0].tolist() for one in (tokenizer, again))
        if before != after:
            raise UserError(
                f"the tokenizer turns {text[:60]!r} into the ids {before[:12]}, and into "
                f"{after[:12]} after it was saved"
            )


def _compare_models(parts: ModelParts, build: Callable[[], SentimentModel]) -> None:
    with torch.random.fork_rng(devices=[]), eval_mode(parts.model):
        problem = _problem(parts, build, blank_weights())
        if problem is not None:
            # Some networks compute with their initial values while they are built.
            problem = _problem(parts, build, nullcontext())
    if problem is not None:
        raise UserError(problem)


def _problem(
    parts: ModelParts, build: Callable[[], SentimentModel], building: AbstractContextManager[Any]
) -> str | None:
    """Why a model built inside `building` is not the run's; None where it is."""
    try:
        with building:
            again = build()
        # Its own memory is freed: both have the same tensors from here on.
        load_strictly(again, parts.model.state_dict(), where="the run's weights", assign=True)
    except UserError as error:
        return str(error)
    again.eval()
    if again.text_encoder is not None and parts.model.text_encoder is not None:
        again.text_encoder.take_masks_like(parts.model.text_encoder)
    inputs = _probe(parts)
    with torch.no_grad():
        expected, found = parts.model(*inputs), again(*inputs)
    if torch.allclose(found, expected, rtol=_RTOL, atol=_ATOL, equal_nan=True):
        return None
    largest = float((found - expected).abs().max())
    return (
        "a model built of the export's description, with the same weights, gives outputs that "
        f"differ by up to {largest:.3g} from {float(expected.abs().max()):.3g}"
    )


def _probe(parts: ModelParts) -> Sequence[Tensor | None]:
    """Token ids (B, T), mask (B, T), images (B, 3, S, S), text and image present (B,); B is 2."""
    ids = mask = images = None
    if parts.tokenizer is not None:
        ids, mask = (one[:, :_NUM_TOKENS] for one in parts.tokenizer(PROBE_TEXTS[:2]))
    if parts.preprocessing.image is not None:
        side = parts.preprocessing.image.image_size_px
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    stand_ins = parts.model.stand_ins
    has_text = torch.tensor([False, True]) if "text" in stand_ins else None
    has_image = torch.tensor([True, False]) if "image" in stand_ins else None
    return ids, mask, images, has_text, has_image
