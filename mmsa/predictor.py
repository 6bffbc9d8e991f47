"""Prediction on raw texts and images, with the same preprocessing as evaluation."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
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
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export, load_model, load_tokenizer_of, read_export, resolve_export

# A file's path, its bytes, or a decoded image.
ImageInput = str | os.PathLike[str] | bytes | Image.Image


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

    @torch.inference_mode()
    def predict(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageInput] | None = None,
        *,
        batch_size: int = 64,
        calibrated: bool = True,
    ) -> Result:
        """Labels and probabilities of `texts` with `images`, N of each.

        Probabilities use the export's temperature, if it has one, unless `calibrated` is False.
        Labels do not depend on it.

        An input that the model does not read may be left out: `images` for a text-only model.

        Raw input goes through the packing's own functions (short side, JPEG quality), so that the
        model sees what it saw in evaluation. Raises `UserError` naming the row of an empty text
        or an image that does not open.
        """
        texts, images = self._both(texts, images)
        rows = [
            self._logits(
                texts[start : start + batch_size], images[start : start + batch_size], start
            )
            for start in range(0, len(texts), batch_size)
        ]
        logits = np.concatenate(rows) if rows else np.empty((0, len(self.label_names)), np.float32)
        calibration = self.export.calibration if calibrated else None
        temperature = temperature_of(calibration)
        probs = probabilities(logits.astype(np.float64) / temperature)
        return Result(
            labels=[self.label_names[label] for label in probs.argmax(axis=1)],
            probabilities=probs,
            label_names=self.label_names,
        )

    def _both(
        self, texts: Sequence[str] | None, images: Sequence[ImageInput] | None
    ) -> tuple[Sequence[str], Sequence[ImageInput]]:
        """Both lists at equal length; `UserError` where one is missing or not a list."""
        reads_text = self._tokenizer is not None
        reads_images = self.export.preprocessing.image is not None
        for name, given, needed in (
            ("texts", texts, reads_text),
            ("images", images, reads_images),
        ):
            if needed and (given is None or isinstance(given, str | bytes)):
                raise UserError(f"give {name} as a list, one for each row; found {given!r:.40}")
        count = len(texts if reads_text else images)  # type: ignore[arg-type]
        texts = [""] * count if texts is None else texts
        images = [b""] * count if images is None else images
        if len(texts) != len(images):
            raise UserError(f"{len(texts)} texts came with {len(images)} images; give one each")
        return texts, images

    def _logits(
        self, texts: Sequence[str], images: Sequence[ImageInput], first_row: int
    ) -> NDArray[np.float32]:
        input_ids = attention_mask = pixels = None
        if self._tokenizer is not None:
            cleaned = [self._text(text, first_row + row) for row, text in enumerate(texts)]
            input_ids, attention_mask = (
                tensor.to(self._device) for tensor in self._tokenizer(cleaned)
            )
        if self.export.preprocessing.image is not None:
            views = (self._view(image, first_row + row) for row, image in enumerate(images))
            preprocessing = self.export.preprocessing
            pixels = image_views.stacked(views, len(images), preprocessing).to(self._device)
        logits: NDArray[np.float32] = (
            self._model(input_ids, attention_mask, pixels).float().cpu().numpy()
        )
        return logits

    def _text(self, text: str, row: int) -> str:
        if not isinstance(text, str):
            raise UserError(f"text {row} is not a string: {text!r:.40}")
        try:
            return text_as_packed(text, self.export.preprocessing.packed_normalize)
        except BadText as error:
            raise UserError(f"text {row}: {error}") from None

    def _view(self, image: ImageInput, row: int) -> torch.Tensor:
        preprocessing = self.export.preprocessing
        try:
            packed, _, _ = image_as_packed(
                _bytes_of(image),
                mode=preprocessing.packed_mode,
                short_side_px=preprocessing.packed_short_side_px,
                quality=preprocessing.packed_quality,
            )
        except (BadImage, OSError) as error:
            raise UserError(f"image {row}: {error}") from None
        return image_views.evaluation_view(image_views.decode(packed), preprocessing)


def load_predictor(export: str | os.PathLike[str], *, device: str | None = None) -> Predictor:
    """Open the export at a path (a run directory means its best); see `mmsa.load`."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(read_export(resolve_export(Path(export)).directory), torch.device(chosen))


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Image.Image | str | os.PathLike):
        raise BadImage(f"expected a path, bytes or an image, found {image!r:.40}")
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")  # lossless: packing encodes once, not twice
        return buffer.getvalue()
    return Path(image).read_bytes()
