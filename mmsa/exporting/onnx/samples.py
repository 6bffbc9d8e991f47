"""Real samples for comparisons: of the validation split, as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmsa.data.decoding import image_views
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget


class Sample(NamedTuple):
    """One sample; None for what it does not have or the model does not read.

    `text` is in packed form, `view` uint8 (3, S, S), `jpeg` the image as it is in the shard and
    `label` the true class as the model counts classes.
    """

    text: str | None
    view: Tensor | None
    jpeg: bytes | None
    label: int


def validation_samples(target: EvalTarget, count: int) -> list[Sample]:
    """`count` samples spread evenly over the split of `target`, or all if they are fewer.

    Raises `UserError` for an image that does not decode.
    """
    places, _ = target.reader.all_records()
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [_sample(target, *places[row].tolist()) for row in np.unique(chosen)]


def validation_batches(target: EvalTarget, size: int) -> Iterator[list[Sample]]:
    """All samples of the split of `target` in its order, `size` at a time, read when asked for: a
    split may be larger than memory.

    Raises `UserError` for an image that does not decode.
    """
    places, _ = target.reader.all_records()
    for start in range(0, len(places), size):
        yield [_sample(target, *place) for place in places[start : start + size].tolist()]


def _sample(target: EvalTarget, shard: int, ordinal: int) -> Sample:
    read = target.export.preprocessing
    raw = target.reader.read(shard, ordinal)
    view = jpeg = None
    if raw.has_image and read.image is not None:
        jpeg = bytes(raw.image)
        try:
            view = image_views.evaluation_view(image_views.decode(jpeg), read)
        except ValueError as error:
            raise UserError(
                f"the image of {raw.key} in {raw.shard} does not decode ({error}); pack the data "
                "again"
            ) from None
    text = raw.text if raw.has_text and read.max_tokens is not None else None
    return Sample(text, view, jpeg, raw.label)


def batches(samples: Sequence[Sample], sizes: Sequence[int] = (1, 7, 32)) -> Iterator[list[Sample]]:
    """The samples in batches of `sizes` by turns, so that batch and length change from each to the
    next."""
    at = turn = 0
    while at < len(samples):
        size = sizes[turn % len(sizes)]
        yield list(samples[at : at + size])
        at, turn = at + size, turn + 1
