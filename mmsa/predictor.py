"""Prediction on raw texts and images, with the same preprocessing as evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmsa.calibration import temperature_of
from mmsa.data.decoding.given_images import ImageInput, content_of, is_one_image, shown
from mmsa.data.decoding.packed_form import BadImage, BadText, text_as_packed
from mmsa.data.decoding.raw_input import raw_view
from mmsa.data.manifest import MODALITIES
from mmsa.engines.hardware import device_named
from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export, read_export
from mmsa.export_target import read_export_whole
from mmsa.models.fusion.sequences import Features, one_row
from mmsa.predicted import Result
from mmsa.row_model import RowModel

if TYPE_CHECKING:
    from mmsa.models.model import SentimentModel

OnError = Literal["keep", "raise"]


class _BadRow(UserError):
    """A row that cannot be predicted."""


class _Row(NamedTuple):
    """One row as the model reads it: its text in packed form, its view (3, S, S)."""

    text: str | None
    view: torch.Tensor | None


class Predictor:
    """A model with its tokenizer and preprocessing, ready on one device."""

    def __init__(self, export: Export, device: torch.device) -> None:
        self.export = export
        self.label_names = export.label_names
        self._rows = RowModel(export, device)

    def __repr__(self) -> str:
        read, may_lack = " and ".join(self._rows.reads), self._rows.may_lack
        lacking = f" (may lack {' or '.join(may_lack)})" if may_lack else ""
        step = self.export.facts.get("step")
        return (
            f"<Predictor of {self.export.directory}: {read}{lacking} -> "
            f"{', '.join(self.label_names)}; step {step}, on {self._rows.device}>"
        )

    def predict(
        self,
        texts: Iterable[str | None] | None = None,
        images: Iterable[ImageInput | None] | None = None,
        *,
        batch_size: int = 64,
        calibrated: bool = True,
        on_error: OnError = "keep",
        embeddings: bool = False,
    ) -> Result:
        """Labels and probabilities of `texts` with `images`, N of each.

        Both may be any iterable with an order: a list, an array, a column of a data frame, a
        generator. An input that the model does not read may be left out: `images` for a text-only
        model. None in place of a text or an image says that the row has none, where the model was
        trained for it (`model.stand_ins` of its export); so does None for all texts or all images.

        Raw input goes through the packing's own functions (short side, JPEG quality), so that the
        model sees what it saw in evaluation, and what packing rejects is not predicted: a text
        that is empty or too long, an image that does not open, one that is None where the model was
        not trained for it, and a row that has nothing. With `on_error` "keep" such a row has its
        reason in `errors` and the others are predicted; with "raise" it raises `UserError`, which
        names the row.

        Probabilities use the export's temperature, if it has one, unless `calibrated` is False.
        Labels do not depend on it. With `embeddings` the result has what the encoders made of each
        modality, projected, before the fusion head: one row for the text, one for the image.

        Raises `UserError` for inputs that are not lists of equal length, for a `batch_size` below
        1, and for logits that are not finite, as evaluation does.
        """
        _check_options(batch_size, on_error)
        texts, images = self._both(texts, images)
        errors: list[str | None] = [None] * len(texts)
        # One logit may stand for two classes, so the first batch says how many there are.
        predicted: list[int] = []
        logits: list[NDArray[np.float32]] = []
        seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._rows.reads}
        for start in range(0, len(texts), batch_size):
            rows, prepared = [], []
            for row in range(start, min(start + batch_size, len(texts))):
                try:
                    prepared.append(self._prepared(texts[row], images[row], row))
                    rows.append(row)
                except _BadRow as error:
                    if on_error == "raise":
                        raise
                    errors[row] = str(error)
            if rows:
                predicted += rows
                logits.append(self._logits(prepared, seen if embeddings else None))
        found = np.concatenate(logits) if logits else np.empty((0, len(self.label_names)))
        self._refuse_nonfinite(found, predicted)
        temperature = temperature_of(self.export.calibration if calibrated else None)
        probs = np.full((len(texts), len(self.label_names)), np.nan)
        probs[predicted] = probabilities(found.astype(np.float64) / temperature)
        labels: list[str | None] = [None] * len(texts)
        for row in predicted:
            labels[row] = self.label_names[int(probs[row].argmax())]
        rows_of = {name: _in_place(parts, predicted, len(texts)) for name, parts in seen.items()}
        return Result(labels, probs, self.label_names, errors, rows_of if embeddings else None)

    def _both(
        self, texts: Iterable[str | None] | None, images: Iterable[ImageInput | None] | None
    ) -> tuple[Sequence[str | None], Sequence[ImageInput | None]]:
        """Both as lists of equal length; `UserError` where one is missing or not a list."""
        may_lack = self._rows.may_lack if texts is not None or images is not None else ()
        needed = {name: name in self._rows.reads and name not in may_lack for name in MODALITIES}
        given_texts = _listed("texts", texts, needed=needed["text"])
        given_images = _listed("images", images, needed=needed["image"])
        count = len(given_images if texts is None else given_texts)
        if texts is None:
            given_texts = [None] * count
        if images is None:
            given_images = [None] * count
        if len(given_texts) != len(given_images):
            raise UserError(
                f"expected an image (or None) for each text; found {len(given_texts)} texts and "
                f"{len(given_images)} images"
            )
        return given_texts, given_images

    def _prepared(self, text: str | None, image: ImageInput | None, row: int) -> _Row:
        """One row as the model reads it. Raises `_BadRow`."""
        given, reads = {"text": text, "image": image}, self._rows.reads
        for name in reads:
            if given[name] is None and name not in self._rows.may_lack:
                raise _BadRow(
                    f"{name} {row}: it is None, and the model in {self.export.directory} was not "
                    f"trained for a missing {name}. Give one, or train with "
                    f"data.modality_dropout.{name} or on samples without {name}"
                )
        if all(given[name] is None for name in reads):
            raise _BadRow(f"row {row} has neither a text nor an image; give one of them")
        return _Row(
            None if text is None or "text" not in reads else self._text(text, row),
            None if image is None or "image" not in reads else self._view(image, row),
        )

    def _logits(
        self, rows: Sequence[_Row], seen: dict[str, list[NDArray[np.float32]]] | None
    ) -> NDArray[np.float32]:
        """The logits of one batch; what the encoders give is appended to `seen`."""
        with _watched(self._rows.model, seen, rows):
            return self._rows.logits(rows)

    def _text(self, text: str, row: int) -> str:
        if not isinstance(text, str):
            raise _BadRow(f"text {row} is not a string: {shown(text)}")
        try:
            return text_as_packed(text, self.export.preprocessing.packed_normalize)
        except BadText as error:
            raise _BadRow(f"text {row}: {error}") from None

    def _view(self, image: ImageInput, row: int) -> torch.Tensor:
        try:
            return raw_view(content_of(image), self.export.preprocessing)
        except BadImage as error:
            raise _BadRow(f"image {row}: {error}") from None

    def _refuse_nonfinite(self, logits: NDArray[Any], rows: Sequence[int]) -> None:
        broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(broken):
            raise UserError(
                f"the model in {self.export.directory} gives logits that are not finite for "
                f"{len(broken)} of {len(logits)} rows, the first is row {rows[broken[0]]}. It has "
                "diverged or its weights are damaged: use the export of an earlier checkpoint"
            )


def load_predictor(export: str | os.PathLike[str], *, device: str | None = None) -> Predictor:
    """Open the export at a path (a run directory means its best); see `mmsa.load`."""
    if not isinstance(export, str | os.PathLike):
        raise UserError(f"give the path of an export or a run; found {shown(export)}")
    chosen = device_named(device)
    # All files of one export, even if its run replaces `best` in the meantime.
    _, predictor = read_export_whole(
        Path(export), "best", lambda found: Predictor(read_export(found.directory), chosen)
    )
    return predictor


def _check_options(batch_size: object, on_error: object) -> None:
    if on_error not in ("keep", "raise"):
        raise UserError(f"on_error is {shown(on_error)}; it must be 'keep' or 'raise'")
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:  # type: ignore[operator]
        raise UserError(f"batch_size is {shown(batch_size)}; it must be an integer of at least 1")


def _listed(name: str, given: Any, *, needed: bool) -> list[Any]:
    """`given` as a list; empty for None, unless it is `needed`."""
    if given is None and not needed:
        return []
    expected = f"give {name} as a list, one for each row; found {shown(given)}"
    # Neither a mapping nor a set has rows in an order.
    if given is None or isinstance(given, (str, Mapping, Set)) or is_one_image(given):
        raise UserError(expected)
    try:
        return list(given)
    except TypeError:
        raise UserError(expected) from None


@contextmanager
def _watched(
    model: SentimentModel,
    seen: dict[str, list[NDArray[np.float32]]] | None,
    rows: Sequence[_Row],
) -> Iterator[None]:
    """Append what the encoders give in a forward pass to `seen`; NaN for rows without input."""
    with ExitStack() as hooks:
        for name in seen or ():
            given = [row.text if name == "text" else row.view for row in rows]
            absent = torch.tensor([one is None for one in given])

            def keep(
                _: Any, __: Any, output: Features, name: str = name, absent: torch.Tensor = absent
            ) -> None:
                assert seen is not None
                found = one_row(output).float().cpu().clone()
                found[absent] = torch.nan
                seen[name].append(found.numpy())

            encoder = getattr(model, f"{name}_encoder")
            hooks.callback(encoder.register_forward_hook(keep).remove)
        yield


def _in_place(
    parts: Sequence[NDArray[np.float32]], rows: Sequence[int], count: int
) -> NDArray[np.float32]:
    """The parts (n, D) together as rows `rows` of (count, D); the others are NaN."""
    if not parts:
        return np.empty((count, 0), np.float32)
    found = np.full((count, parts[0].shape[1]), np.nan, np.float32)
    found[list(rows)] = np.concatenate(parts)
    return found
