"""Prediction on raw texts and pictures, with the very preprocessing of evaluation."""

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

from mmsa.data.decoding import image_views
from mmsa.data.decoding.packed_form import BadImage, BadText, image_as_packed, text_as_packed
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export, load_model, load_tokenizer_of, read_export, resolve_export

# A file's path, its bytes, or a decoded picture.
Picture = str | os.PathLike[str] | bytes | Image.Image


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
        pictures: Sequence[Picture] | None = None,
        *,
        batch_size: int = 64,
        calibrated: bool = True,
    ) -> Result:
        """Labels and probabilities of `texts` with `pictures`, N of each.

        Probabilities are with the export's temperature, where it has one; `calibrated` False leaves
        it out. Labels are the same.

        What the model does not read may be left out: pictures for one of texts alone.

        Raw input goes through the packing's own functions (short side, JPEG quality), so that the
        model sees what it saw in evaluation. Raises `UserError` naming the row of an empty text
        or a picture that does not open.
        """
        texts, pictures = self._both(texts, pictures)
        rows = [
            self._logits(
                texts[start : start + batch_size], pictures[start : start + batch_size], start
            )
            for start in range(0, len(texts), batch_size)
        ]
        logits = np.concatenate(rows) if rows else np.empty((0, len(self.label_names)), np.float32)
        calibration = self.export.calibration if calibrated else None
        temperature = 1.0 if calibration is None else calibration.temperature
        probs = probabilities(logits.astype(np.float64) / temperature)
        return Result(
            labels=[self.label_names[label] for label in probs.argmax(axis=1)],
            probabilities=probs,
            label_names=self.label_names,
        )

    def _both(
        self, texts: Sequence[str] | None, pictures: Sequence[Picture] | None
    ) -> tuple[Sequence[str], Sequence[Picture]]:
        """Both lists at equal length; a `UserError` where one is missing or is no list."""
        reads_text = self._tokenizer is not None
        reads_images = self.export.preprocessing.image is not None
        for name, given, needed in (
            ("texts", texts, reads_text),
            ("pictures", pictures, reads_images),
        ):
            if needed and (given is None or isinstance(given, str | bytes)):
                raise UserError(f"give {name} as a list, one for each row; found {given!r:.40}")
        count = len(texts if reads_text else pictures)  # type: ignore[arg-type]
        texts = [""] * count if texts is None else texts
        pictures = [b""] * count if pictures is None else pictures
        if len(texts) != len(pictures):
            raise UserError(f"{len(texts)} texts came with {len(pictures)} pictures; give one each")
        return texts, pictures

    def _logits(
        self, texts: Sequence[str], pictures: Sequence[Picture], first_row: int
    ) -> NDArray[np.float32]:
        input_ids = attention_mask = pixels = None
        if self._tokenizer is not None:
            cleaned = [self._text(text, first_row + row) for row, text in enumerate(texts)]
            input_ids, attention_mask = (
                tensor.to(self._device) for tensor in self._tokenizer(cleaned)
            )
        if self.export.preprocessing.image is not None:
            views = (self._view(picture, first_row + row) for row, picture in enumerate(pictures))
            preprocessing = self.export.preprocessing
            pixels = image_views.stacked(views, len(pictures), preprocessing).to(self._device)
        logits: NDArray[np.float32] = (
            self._model(input_ids, attention_mask, pixels).float().cpu().numpy()
        )
        return logits

    def _text(self, text: str, row: int) -> str:
        if not isinstance(text, str):
            raise UserError(f"text {row} is no string: {text!r:.40}")
        try:
            return text_as_packed(text, self.export.preprocessing.packed_normalize)
        except BadText as error:
            raise UserError(f"text {row}: {error}") from None

    def _view(self, picture: Picture, row: int) -> torch.Tensor:
        preprocessing = self.export.preprocessing
        try:
            packed, _, _ = image_as_packed(
                _bytes_of(picture),
                mode=preprocessing.packed_mode,
                short_side_px=preprocessing.packed_short_side_px,
                quality=preprocessing.packed_quality,
            )
        except (BadImage, OSError) as error:
            raise UserError(f"picture {row}: {error}") from None
        return image_views.evaluation_view(image_views.decode(packed), preprocessing)


def load_predictor(export: str | os.PathLike[str], *, device: str | None = None) -> Predictor:
    """Open the export at a path (a run directory means its best); see `mmsa.load`."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(read_export(resolve_export(Path(export)).directory), torch.device(chosen))


def _bytes_of(picture: Any) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, Image.Image | str | os.PathLike):
        raise BadImage(f"no path, bytes or picture: {picture!r:.40}")
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")  # lossless: packing encodes once, not twice
        return buffer.getvalue()
    return Path(picture).read_bytes()
