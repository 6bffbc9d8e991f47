"""An export in service: one post -> a row (in a decoding thread), rows -> answers (in another).

The steps are those of `mmsa.load(EXPORT).predict`; a server runs the first on other threads than
the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmsa.calibration import temperature_of
from mmsa.data.decoding import image_views
from mmsa.data.decoding.packed_form import BadImage, BadText, text_as_packed
from mmsa.data.decoding.raw_input import raw_view
from mmsa.data.manifest import Modality
from mmsa.engines.hardware import device_named
from mmsa.errors import UserError
from mmsa.evaluation.modality_audit.changed_inputs import plain_image
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export, read_export
from mmsa.export_target import Target, read_export_whole
from mmsa.row_model import RowModel
from mmsa.serve.bodies import RawPost
from mmsa.serve.folding import fold_batch_norms
from mmsa.serve.lanes import Lanes
from mmsa.serve.options import Options
from mmsa.serve.problems import Problem


@dataclass(frozen=True)
class Row:
    """One row of a batch. `text` is cleaned; `view` is uint8 (3, S, S), None for no image."""

    model: ServedModel
    text: str | None
    view: torch.Tensor | None

    @property
    def length(self) -> int:
        """What its text costs, roughly: rows of one length make a batch without padding."""
        return len(self.text or "")


@dataclass(frozen=True)
class Scores:
    """The probabilities (C,) of one row, in the order of the model's label names."""

    label_names: tuple[str, ...]
    probabilities: NDArray[np.float64]

    def as_json(self) -> dict[str, Any]:
        best = int(self.probabilities.argmax())
        values = [float(value) for value in self.probabilities]
        return {
            "label": self.label_names[best],
            "confidence": values[best],
            "probabilities": dict(zip(self.label_names, values, strict=True)),
        }


class ServedModel:
    """A model with its tokenizer and preprocessing on one device. Its methods may be called by
    several threads; `parallel` of them compute at a time."""

    def __init__(self, export: Export, target: Target, device: torch.device, options: Options):
        self.export = export
        self.target = target
        self.label_names = export.label_names
        self.digest = export.weights_sha256
        self._options = options
        self.device = device
        rows = RowModel(export, device)
        on_cpu = device.type == "cpu"
        self.parallel = min(options.parallel, options.threads) if on_cpu else 1
        self.num_parameters = sum(one.numel() for one in rows.model.parameters())
        self.reads = rows.reads
        self.may_lack = rows.may_lack
        probe = self._probe_row()
        if on_cpu:
            fold_batch_norms(rows.model, lambda: torch.from_numpy(rows.logits([probe])))
        twins = [rows, *(rows.twin() for _ in range(self.parallel - 1))]
        self._lanes = Lanes(twins, options.threads)
        self._plain = self._plain_view()
        self.compute([probe])  # the first pass is slower, and shows broken weights

    @property
    def is_calibrated(self) -> bool:
        """Whether the export has a temperature. A calibration without one says why it has none."""
        calibration = self.export.calibration
        return calibration is not None and calibration.temperature is not None

    def row(self, post: RawPost) -> Row:
        """`post` as a row. Raises `Problem` (413, 422) where the model cannot use it."""
        if post.problem is not None:
            raise Problem(422, post.problem)
        given = {"text": post.text, "image": post.image}
        for name in self.reads:
            if given[name] is None and name not in self.may_lack:
                raise Problem(422, f"{name}: it is missing, and this model needs one")
        if all(given[name] is None for name in self.reads):
            raise Problem(422, "the post has neither a text nor an image; give one")
        return Row(self, self._text(post.text), self._view(post.image))

    def alone(self, row: Row) -> dict[Modality, Row]:
        """The same row with only one modality each, for a model that reads both and a row that
        has both: the other is masked as in the modality audit."""
        if len(self.reads) < 2 or row.text is None or row.view is None:
            return {}
        return {
            "text": Row(self, row.text, None if "image" in self.may_lack else self._plain),
            "image": Row(self, None if "text" in self.may_lack else "", row.view),
        }

    def compute(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of `rows`. Raises `UserError` where a logit is not finite."""
        with self._lanes.one() as model:
            logits = model.logits(rows)
        if not np.isfinite(logits).all():
            raise UserError("the model gives logits that are not finite; use another checkpoint")
        temperature = temperature_of(self.export.calibration)
        found = probabilities(logits.astype(np.float64) / temperature)
        return [Scores(self.label_names, one) for one in found]

    def _text(self, text: str | None) -> str | None:
        if text is None or "text" not in self.reads:
            return None
        try:
            return text_as_packed(
                text,
                self.export.preprocessing.packed_normalize,
                max_characters=self._options.max_characters,
            )
        except BadText as error:
            status = 413 if error.kind == "too long" else 422
            raise Problem(status, f"text: {error}") from None

    def _view(self, image: bytes | None) -> torch.Tensor | None:
        if image is None or "image" not in self.reads:
            return None
        try:
            return raw_view(image, self.export.preprocessing, max_pixels=self._options.max_pixels)
        except BadImage as error:
            status = 413 if error.kind == "too large" else 422
            raise Problem(status, f"image: {error}") from None

    def _plain_view(self) -> torch.Tensor | None:
        """The masked image of the modality audit: of the encoder's mean colour."""
        settings = self.export.preprocessing.image
        if settings is None:
            return None
        red, green, blue = settings.mean
        decoded = image_views.decode(plain_image((red, green, blue)))
        return image_views.evaluation_view(decoded, self.export.preprocessing)

    def _probe_row(self) -> Row:
        """A text, and an image of noise: in a plain one much of an encoder would not show."""
        settings = self.export.preprocessing.image
        if settings is None:
            return Row(self, "a", None)
        side = settings.image_size_px
        noise = torch.randint(
            256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        return Row(self, "a" if "text" in self.reads else None, noise)


def load_served(path: Path, options: Options, device: str | torch.device | None) -> ServedModel:
    """The export that `path` refers to (a run: its best), read whole and checked.

    Raises `UserError` where it is damaged or not there, or the device cannot be used.
    """
    chosen = device if isinstance(device, torch.device) else device_named(device)
    _, served = read_export_whole(
        path,
        "best",
        lambda found: ServedModel(read_export(found.directory), found, chosen, options),
    )
    return served
