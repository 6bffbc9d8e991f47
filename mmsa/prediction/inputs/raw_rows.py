"""Rows whose texts are at hand and whose images are files: of a table, or of a folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mmsa.data.decoding.packed_form import BadImage
from mmsa.data.decoding.posted_images import image_file
from mmsa.data.decoding.raw_input import raw_view
from mmsa.data.index_file import key_hash
from mmsa.data.raw_sample import RawSample
from mmsa.prediction.inputs.source import (
    WINDOW_ROWS,
    BadRow,
    LoadedRow,
    Needs,
    Source,
    Window,
    window_of,
)
from mmsa.preprocessing import Preprocessing


class RawRow(NamedTuple):
    """One row: its text in packed form, its image file, or the reason why it is not usable.

    `key` is the one that packing would give it: rows of equal length are sorted by its hash.
    """

    key: str
    text: str | None = None
    image: Path | None = None
    problem: str | None = None


class RawRows(Source):
    """Reads its rows window by window."""

    needs: Needs
    preprocessing: Preprocessing
    window_rows: int = WINDOW_ROWS
    _window: list[RawRow]

    @abstractmethod
    def rows(self) -> Iterator[RawRow]:
        """All rows, in their order."""

    def windows(self) -> Iterator[Window]:
        """Windows of `window_rows` rows."""
        rows, first = self.rows(), 0
        while window := list(islice(rows, self.window_rows)):
            self._window = window
            usable = [place for place, row in enumerate(window) if row.problem is None]
            yield window_of(
                first,
                len(window),
                usable,
                [len(window[place].text or "") for place in usable],
                [key_hash(window[place].key) for place in usable],
                {place: row.problem for place, row in enumerate(window) if row.problem is not None},
            )
            first += len(window)

    def load(self, place: int) -> LoadedRow:
        """The row; its image is read and decoded here. Raises `BadRow` where it is no image."""
        row = self._window[place]
        view = None
        if row.image is not None and self.preprocessing.image is not None:
            try:
                view = raw_view(image_file(row.image), self.preprocessing)
            except BadImage as error:
                raise BadRow(f"image: {error}") from None
        sample = RawSample(
            row.key, "", b"", row.text or "", b"", 0, 0,
            has_text=row.text is not None, has_image=row.image is not None,
        )  # fmt: skip
        return LoadedRow(sample, view)
