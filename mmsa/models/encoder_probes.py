"""What a foreign encoder must do, tried once before the first step: tell its inputs apart, give the
same features again, and take a text of `data.max_tokens` tokens.

An encoder of another project fails these without a word: a causal one under `pooling: cls` gives
every text the features of its first token; one that masks at random in eval mode gives every
evaluation another result. Some small forward passes on the CPU, the same on every rank; random
generators are left as they were.

Shapes: B batch, T tokens, S input side in pixels, D features.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mmsa.config import ModelConfig
from mmsa.errors import UserError, first_line, one_or_many
from mmsa.models.build_encoders import families_of
from mmsa.models.encoders import FRESH, IMAGE_SECTION, TEXT_SECTION, Encoder, ImageEncoder
from mmsa.models.eval_mode import eval_mode
from mmsa.models.fusion.sequences import one_row
from mmsa.models.model import SentimentModel
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.text_pooling import padding_id

logger = logging.getLogger("mmsa")

_SAME = 1e-6  # of the largest feature: below this two rows are rounding apart
_NUM_TOKENS = 8  # of the two short texts


def probe_encoders(model: SentimentModel, config: ModelConfig, max_tokens: int) -> None:
    """Try the encoders of `model`, except those of torchvision, whose behaviour is known.

    `max_tokens` is `data.max_tokens`. Raises `UserError` with what is wrong with each of them.
    """
    text, image = model.text_encoder, model.image_encoder
    problems: list[str] = []
    if text is not None and _is_foreign(config, "text"):
        _collect(problems, lambda: probe_text_encoder(text, config.text_encoder.name, max_tokens))
    if image is not None and _is_foreign(config, "image"):
        _collect(problems, lambda: probe_image_encoder(image, config.image_encoder.name))
    if problems:
        raise UserError(one_or_many(problems, where="the encoders cannot be used"))


def probe_text_encoder(encoder: TextEncoder, name: str, max_tokens: int) -> None:
    """Raise `UserError` where the text encoder `name` cannot read texts or tell them apart."""
    named = f"{TEXT_SECTION} ({name})"
    with _undisturbed(encoder):
        _check_length(encoder, named, max_tokens)
        ids = _two_texts(encoder, min(_NUM_TOKENS, max_tokens))
        first, again = _twice(
            lambda rows: one_row(encoder(ids[:rows], torch.ones_like(ids[:rows]))), named
        )
        padded = first[:1]
        if ids.shape[1] < max_tokens:
            padded = one_row(encoder(*_padded(encoder, ids[:1])))
    _check_repeats(first, again, named)
    if not _close(first[:1], padded):
        logger.warning(
            "%s gives a text other features beside a longer one, because it also reads the padding "
            "(%s): predictions depend on which texts share a batch",
            named,
            type(encoder.body).__name__,
        )
    if not torch.equal(ids[0], ids[1]) and _same(first[0], first[1]):
        raise UserError(
            f"{named} gives two different texts the same features with {TEXT_SECTION}.pooling="
            f"{encoder.pooling}. Expected features that depend on all of the text: a causal "
            "encoder, whose tokens know only those before them, needs its last token or the mean. "
            f"Use {TEXT_SECTION}.pooling=last or {TEXT_SECTION}.pooling=mean"
        )


def probe_image_encoder(encoder: ImageEncoder, name: str) -> None:
    """Raise `UserError` where the image encoder `name` gives no features to rely on."""
    named = f"{IMAGE_SECTION} ({name})"
    images = _two_images(encoder.preprocessing.image_size_px)
    with _undisturbed(encoder):
        first, again = _twice(lambda rows: one_row(encoder(images[:rows])), named)
    _check_repeats(first, again, named)
    # Fresh weights may vanish in eval mode, where BatchNorm does not normalise yet (MobileViT).
    if encoder.source != FRESH and _same(first[0], first[1]):
        raise UserError(
            f"{named} gives two different images the same features. Expected features that depend "
            "on the image; its weights may be damaged: use others, or another encoder"
        )


def _check_length(encoder: TextEncoder, named: str, max_tokens: int) -> None:
    """Raise `UserError` with the longest text that works if `max_tokens` is longer."""
    limit = max_tokens
    if encoder.max_positions is not None:
        limit = min(limit, encoder.max_positions)
    reason = _failure(encoder, limit)
    if limit == max_tokens and reason is None:
        return
    if reason is not None:
        works, fails = 0, limit
        while fails - works > 1:
            middle = (works + fails) // 2
            works, fails = (works, middle) if _failure(encoder, middle) else (middle, fails)
        limit = works
    because = f" (more end in {reason})" if reason else ""
    if not limit:
        raise UserError(f"{named} does not read texts: {reason}. Use another encoder")
    raise UserError(
        f"data.max_tokens={max_tokens}, but {named} reads {limit} tokens at most{because}; use "
        f"data.max_tokens={limit} or fewer"
    )


def _failure(encoder: TextEncoder, num_tokens: int) -> str | None:
    """What a text of `num_tokens` tokens ends in; None where it works."""
    ids = _two_texts(encoder, num_tokens)[:1]
    try:
        encoder(ids, torch.ones_like(ids))
    except Exception as error:  # the code of the encoder may raise anything
        return first_line(error, with_type=True)
    return None


def _twice(forward: Callable[[int], Tensor], named: str) -> tuple[Tensor, Tensor]:
    """The features of two inputs (2, D), and of the first again (1, D) with other random numbers.

    `forward` takes the number of inputs.
    """
    try:
        _seed(0)
        first = forward(2)
        _seed(1)
        again = forward(1)
    except Exception as error:  # the code of the encoder may raise anything
        raise UserError(
            f"{named} does not take its input: {first_line(error, with_type=True)}. Use another "
            "encoder"
        ) from None
    if first.dim() != 2 or len(first) != 2:
        raise UserError(
            f"{named} gives features of shape {tuple(first.shape)} for two inputs. Expected one "
            "row for each: use another encoder"
        )
    return first, again


def _check_repeats(first: Tensor, again: Tensor, named: str) -> None:
    if not bool(torch.isfinite(first).all()):
        raise UserError(
            f"{named} gives features that are not numbers (NaN or infinite); its weights are "
            "damaged: use others"
        )
    if not _close(first[:1], again):
        raise UserError(
            f"{named} gives the same input other features each time, also in eval mode (random "
            "masks, for example), so two evaluations would differ. Use another encoder"
        )


def _two_texts(encoder: TextEncoder, num_tokens: int) -> Tensor:
    """Token ids (2, T) of two texts that begin and end alike and differ in between.

    Without the padding's id, from which some encoders count positions.
    """
    pad = padding_id(encoder.body)
    spread = np.linspace(0, encoder.vocab_size - 1, min(encoder.vocab_size, 2 * num_tokens + 1))
    choice = [int(token) for token in spread if int(token) != pad] or [0]
    ids = torch.tensor(
        [[choice[(start + at) % len(choice)] for at in range(num_tokens)] for start in (0, 1)]
    )
    ids[1, 0], ids[1, -1] = ids[0, 0], ids[0, -1]
    return ids


def _padded(encoder: TextEncoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (1, T) with one token of padding behind them, and their mask."""
    ends = torch.full((1, 1), max(padding_id(encoder.body) or 0, 0))
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ends)], dim=1)
    return torch.cat([ids, ends], dim=1), mask


def _two_images(side: int) -> Tensor:
    """uint8 (2, 3, S, S): colours that rise across the image, and noise."""
    ramp = torch.linspace(0, 255, side)
    rising = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    smooth = torch.cat([rising, 255 - rising[:1]]).to(torch.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    return torch.stack([smooth, torch.from_numpy(noise)])


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two results for the same input are equal but for rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def _same(one: Tensor, other: Tensor) -> bool:
    scale = float(torch.maximum(one.abs().max(), other.abs().max()))
    return float((one - other).abs().max()) <= _SAME * scale


@contextmanager
def _undisturbed(encoder: Encoder) -> Iterator[None]:
    """Eval mode without gradients; afterwards the mode and all generators are what they were."""
    numbers, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), eval_mode(encoder):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def _collect(problems: list[str], probe: Callable[[], None]) -> None:
    try:
        probe()
    except UserError as error:
        problems.append(str(error))


def _is_foreign(config: ModelConfig, modality: str) -> bool:
    families = families_of(config, text=modality == "text", image=modality == "image")
    return any(family.is_foreign for family in families)
