"""A made-up data set in MVSA-Single's own raw layout, to try everything without real data.

Words carry the text label and images the image label; `labelResultAll.txt` lists their pairs. By
design one modality decides only part of the samples and both together decide all. Of every 100
samples 4 have conflicting labels, which packing drops. Of the others 40 % are positive, 40 %
negative and 20 % neutral. Of the positive ones (and likewise the negative ones) 30 % carry the
label in both modalities, 35 % in the text alone and 35 % in the image alone. So of 100 samples,
those with a neutral text are 20 neutral, 14 positive and 14 negative ones, and one modality reaches
at best an accuracy of 0.72 and a weighted F1 of 0.75. Both together can reach 1.

Measured on the test split (433) of 4,500 samples of seed 0, weighted F1: a logistic regression on
the words 0.73; three small convolutions on 64 x 64 pixels, six epochs, 0.71; the two joined by the
fusion rule 0.98. Words always give the text label, images the image label in 97 of 100.

With `plain` the labels are independent of texts and images, and the three fused classes are equally
frequent: whatever a model predicts, its expected accuracy is 1/3. A higher one shows a leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsa.errors import UserError
from mmsa.process.progress import progress
from shards.packing.output_directory import new_directory, refuse_existing
from shards.splits.by_hash import largest_remainder
from shards.synthetic.images import make_image
from shards.synthetic.texts import make_text

Pair = tuple[str, str]  # (text label, image label)

_CLASS_SHARES = {"positive": 0.4, "negative": 0.4, "neutral": 0.2}
_PLAIN_CLASS_SHARES = {"positive": 1 / 3, "negative": 1 / 3, "neutral": 1 / 3}
_BOTH, _TEXT_ALONE, _IMAGE_ALONE = 0.30, 0.35, 0.35
_CONFLICTING = 0.04  # of all samples, half of them with a positive text


def write_raw(
    out: Path,
    *,
    num_samples: int,
    seed: int,
    plain: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path | None:
    """Write `num_samples` made-up samples to the new directory `out`; the seed decides all bytes.

    Returns where `overwrite` moved an older `out`. No two texts and no two images are equal.
    Raises `UserError` for fewer than one sample, a negative seed, or an `out` that exists.
    """
    if num_samples < 1:
        raise UserError(f"--samples {num_samples} must be at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed} must be at least 0")
    refuse_existing(out, overwrite=overwrite)
    labels = label_pairs(num_samples, seed=seed, plain=plain)
    # Plain: texts and images show another list of pairs, drawn independently of the labels.
    shown = label_pairs(num_samples, seed=seed + 1, plain=plain) if plain else labels
    # Not flushed: thousands of small files that one command can make again.
    with new_directory(out, overwrite=overwrite, flush=False) as new:
        data = new.directory / "data"
        data.mkdir()
        samples = progress(_samples(shown, seed), total=num_samples, what="making", quiet=quiet)
        for number, (text, image) in enumerate(samples, start=1):
            (data / f"{number}.txt").write_bytes(f"{text}\r\n".encode("gb18030"))
            (data / f"{number}.jpg").write_bytes(image)
        lines = ["ID\ttext,image"]
        lines += [f"{number}\t{text},{image}" for number, (text, image) in enumerate(labels, 1)]
        content = "".join(f"{line}\r\n" for line in lines)
        (new.directory / "labelResultAll.txt").write_bytes(content.encode("ascii"))
    return new.moved_to


def label_pairs(num_samples: int, *, seed: int, plain: bool) -> list[Pair]:
    """`num_samples` (text label, image label) in a random order, with exact shares."""
    shares: dict[Pair, float] = {}
    for label, share in (_PLAIN_CLASS_SHARES if plain else _CLASS_SHARES).items():
        kept = share * (1 - _CONFLICTING)
        if label == "neutral":
            shares["neutral", "neutral"] = kept
            continue
        shares[label, label] = kept * _BOTH
        shares[label, "neutral"] = kept * _TEXT_ALONE
        shares["neutral", label] = kept * _IMAGE_ALONE
    shares["positive", "negative"] = shares["negative", "positive"] = _CONFLICTING / 2
    counts = largest_remainder(num_samples, list(shares.values()))
    pairs = [pair for pair, number in zip(shares, counts, strict=True) for _ in range(number)]
    order = np.random.default_rng([seed, 0]).permutation(num_samples)
    return [pairs[i] for i in order]


def _samples(pairs: list[Pair], seed: int) -> Iterator[tuple[str, bytes]]:
    """(text, JPEG bytes) of each pair; each has its own generator; repetitions are drawn again."""
    texts: set[bytes] = set()
    images: set[bytes] = set()
    for number, (text_label, image_label) in enumerate(pairs, start=1):
        rng = np.random.default_rng([seed, number])
        text = make_text(text_label, rng)
        while _seen(text.encode("utf-8"), texts):
            text = make_text(text_label, rng)
        image = make_image(image_label, rng)
        while _seen(image, images):
            image = make_image(image_label, rng)
        yield text, image


def _seen(content: bytes, digests: set[bytes]) -> bool:
    """Whether `content` is already in `digests`; adds it."""
    digest = hashlib.sha256(content).digest()
    known = digest in digests
    digests.add(digest)
    return known
