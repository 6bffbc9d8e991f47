"""Prediction on raw texts and images, with the same preprocessing as evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmsa.calibration import temperature_of
from mmsa.data.decoding import image_views
from mmsa.data.decoding.packed_form import BadImage, BadText, image_as_packed, text_as_packed
from mmsa.data.decoding.posted_images import image_file
from mmsa.data.manifest import MODALITIES
from mmsa.engines.gpu_kernels import strict_float32
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export, load_model, load_tokenizer_of, read_export
from mmsa.export_target import read_export_whole

# A file's path, its bytes, or an image that Pillow has opened or made.
ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image

# One text or one image where a list of them is expected.
_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)


@dataclass(frozen=True)
class Result:
    """One row per pair: `labels` are names, `probabilities` (N, C) in the order `label_names`."""

    labels: list[str]
    probabilities: NDArray[np.float64]
    label_names: tuple[str, ...]


class Predictor:
    """A model with its tokenizer and preprocessing, ready on one device."""

    def __init__(self, export: Export, device: torch.device) -> None:
        self.export = export
        self.label_names = export.label_names
        self._device = device
        self._model = load_model(export).to(device)
        self._tokenizer = load_tokenizer_of(export)
        read = {"text": self._tokenizer, "image": export.preprocessing.image}
        self._reads = {name: one is not None for name, one in read.items()}
        self._may_lack = export.may_lack

    @torch.inference_mode()
    def predict(
        self,
        texts: Iterable[str | None] | None = None,
        images: Iterable[ImageInput | None] | None = None,
        *,
        batch_size: int = 64,
        calibrated: bool = True,
    ) -> Result:
        """Labels and probabilities of `texts` with `images`, N of each.

        Both may be any iterable with an order: a list, an array, a column of a data frame, a
        generator. An input that the model does not read may be left out: `images` for a text-only
        model. None in place of a text or an image says that the row has none, where the model was
        trained for it (`model.stand_ins` of its export); so does None for all texts or all images.

        Probabilities use the export's temperature, if it has one, unless `calibrated` is False.
        Labels do not depend on it.

        Raw input goes through the packing's own functions (short side, JPEG quality), so that the
        model sees what it saw in evaluation, and refuses what packing rejects: raises `UserError`
        naming the row of a text that is empty or too long, of an image that does not open, and of
        one that is None where the model was not trained for it or the row has nothing else. Also
        for a `batch_size` below 1, and for logits that are not finite, as evaluation does.
        """
        _check_batch_size(batch_size)
        texts, images = self._both(texts, images)
        self._refuse_missing(texts, images)
        rows = [
            self._logits(
                texts[start : start + batch_size], images[start : start + batch_size], start
            )
            for start in range(0, len(texts), batch_size)
        ]
        logits = np.concatenate(rows) if rows else np.empty((0, len(self.label_names)), np.float32)
        self._refuse_nonfinite(logits)
        calibration = self.export.calibration if calibrated else None
        temperature = temperature_of(calibration)
        probs = probabilities(logits.astype(np.float64) / temperature)
        return Result(
            labels=[self.label_names[label] for label in probs.argmax(axis=1)],
            probabilities=probs,
            label_names=self.label_names,
        )

    def _both(
        self, texts: Iterable[str | None] | None, images: Iterable[ImageInput | None] | None
    ) -> tuple[Sequence[str | None], Sequence[ImageInput | None]]:
        """Both as lists of equal length; `UserError` where one is missing or not a list."""
        may_lack = self._may_lack if texts is not None or images is not None else ()
        needed = {name: self._reads[name] and name not in may_lack for name in MODALITIES}
        given_texts = _listed("texts", texts, needed=needed["text"])
        given_images = _listed("images", images, needed=needed["image"])
        count = len(given_images if texts is None else given_texts)
        if texts is None:
            given_texts = [None] * count
        if images is None:
            given_images = [None] * count
        if len(given_texts) != len(given_images):
            raise UserError(
                f"{len(given_texts)} texts came with {len(given_images)} images; give one each"
            )
        return given_texts, given_images

    def _refuse_missing(
        self, texts: Sequence[str | None], images: Sequence[ImageInput | None]
    ) -> None:
        """Raise `UserError` for a None that the model was not trained for, or that leaves a row
        without input."""
        given = {"text": texts, "image": images}
        read = [name for name in MODALITIES if self._reads[name]]
        for name in read:
            row = next((row for row, one in enumerate(given[name]) if one is None), None)
            if row is not None and name not in self._may_lack:
                raise UserError(
                    f"{name} {row}: it is None, and the model in {self.export.directory} was not "
                    f"trained for a missing {name}. Give one, or train with "
                    f"data.modality_dropout.{name} or on samples without {name}"
                )
        for row, inputs in enumerate(zip(*(given[name] for name in read), strict=True)):
            if all(one is None for one in inputs):
                raise UserError(f"row {row} has neither a text nor an image; give one of them")

    def _logits(
        self, texts: Sequence[str | None], images: Sequence[ImageInput | None], first_row: int
    ) -> NDArray[np.float32]:
        input_ids = attention_mask = pixels = None
        present = [
            torch.tensor([one is not None for one in given]).to(self._device)
            if name in self._may_lack
            else None
            for name, given in zip(MODALITIES, (texts, images), strict=True)
        ]
        if self._tokenizer is not None:
            cleaned = [
                "" if text is None else self._text(text, first_row + row)
                for row, text in enumerate(texts)
            ]
            input_ids, attention_mask = (
                tensor.to(self._device) for tensor in self._tokenizer(cleaned)
            )
        if self.export.preprocessing.image is not None:
            views = (self._view(image, first_row + row) for row, image in enumerate(images))
            preprocessing = self.export.preprocessing
            pixels = image_views.stacked(views, len(images), preprocessing).to(self._device)
        with strict_float32():  # as in evaluation
            logits: NDArray[np.float32] = (
                self._model(input_ids, attention_mask, pixels, *present).float().cpu().numpy()
            )
        return logits

    def _text(self, text: str, row: int) -> str:
        if not isinstance(text, str):
            raise UserError(f"text {row} is not a string: {_shown(text)}")
        try:
            return text_as_packed(text, self.export.preprocessing.packed_normalize)
        except BadText as error:
            raise UserError(f"text {row}: {error}") from None

    def _view(self, image: ImageInput | None, row: int) -> torch.Tensor:
        preprocessing = self.export.preprocessing
        if image is None:  # its features do not count
            side = preprocessing.image.image_size_px if preprocessing.image is not None else 1
            return torch.zeros(3, side, side, dtype=torch.uint8)
        try:
            packed, _, _ = image_as_packed(
                _content(image),
                mode=preprocessing.packed_mode,
                short_side_px=preprocessing.packed_short_side_px,
                quality=preprocessing.packed_quality,
            )
        except BadImage as error:
            raise UserError(f"image {row}: {error}") from None
        return image_views.evaluation_view(image_views.decode(packed), preprocessing)

    def _refuse_nonfinite(self, logits: NDArray[np.float32]) -> None:
        broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(broken):
            raise UserError(
                f"the model in {self.export.directory} gives logits that are not finite for "
                f"{len(broken)} of {len(logits)} rows, the first is row {broken[0]}. It has "
                "diverged or its weights are damaged: use the export of an earlier checkpoint"
            )


def load_predictor(export: str | os.PathLike[str], *, device: str | None = None) -> Predictor:
    """Open the export at a path (a run directory means its best); see `mmsa.load`."""
    if not isinstance(export, str | os.PathLike):
        raise UserError(f"give the path of an export or a run; found {_shown(export)}")
    chosen = _device(device)
    # All files of one export, even if its run replaces `best` in the meantime.
    _, predictor = read_export_whole(
        Path(export), "best", lambda found: Predictor(read_export(found.directory), chosen)
    )
    return predictor


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"the device {name!r} cannot be used ({said:.120}); use cpu, cuda or cuda:N"
        ) from None
    return device


def _check_batch_size(batch_size: object) -> None:
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:  # type: ignore[operator]
        raise UserError(f"batch_size is {_shown(batch_size)}; it must be an integer of at least 1")


def _listed(name: str, given: Any, *, needed: bool) -> list[Any]:
    """`given` as a list; empty for None, unless it is `needed`."""
    if given is None and not needed:
        return []
    expected = f"give {name} as a list, one for each row; found {_shown(given)}"
    # Neither a mapping nor a set has rows in an order.
    if given is None or isinstance(given, (*_SINGLE, Mapping, Set)):
        raise UserError(expected)
    try:
        return list(given)
    except TypeError:
        raise UserError(expected) from None


def _content(image: Any) -> bytes | Image.Image:
    """What packing takes of an image. Raises `BadImage` where it is none or cannot be read."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return image_file(image)
    raise BadImage(f"expected a path, bytes or a Pillow image, found {_shown(image)}")


def _shown(value: object) -> str:
    """A value in a message: the start of how Python writes it, on one line."""
    return " ".join(repr(value)[:60].split())[:40]
