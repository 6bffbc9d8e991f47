"""Which modalities of a sample count: those that it has, less what modality dropout takes away."""

from __future__ import annotations

from dataclasses import dataclass

from mmsa.data.raw_sample import RawSample
from mmsa.foundation.hashed_random import stream_key, uniforms


@dataclass(frozen=True)
class ModalityDropout:
    """Probabilities of training on a sample without its text, or without its image."""

    seed: int
    text: float
    image: float


def kept_modalities(
    sample: RawSample, dropout: ModalityDropout | None, epoch: int
) -> tuple[bool, bool]:
    """Whether the text and the image of `sample` count in this epoch.

    One draw by (seed, epoch, key) decides, whatever rank and worker read the sample, so that it
    never loses both. A sample that has one modality always keeps it.
    """
    if dropout is None or not (sample.has_text and sample.has_image):
        return sample.has_text, sample.has_image
    (draw,) = uniforms(stream_key("modality", dropout.seed, epoch, sample.key_hash), 1)
    return draw >= dropout.text, not dropout.text <= draw < dropout.text + dropout.image
