"""What all inputs have in common: windows of rows, and one row as a model reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmsa.data.decoding.packed_form import BadText, text_as_packed
from mmsa.data.manifest import MODALITIES, Modality
from mmsa.data.raw_sample import RawSample
from mmsa.export import Export
from mmsa.foundation.hashed_random import IntArray, KeyArray

# Rows that are sorted together: a table is never in memory as a whole. Of a split of up to this
# many samples, a table with the same samples has the batches of the evaluation.
WINDOW_ROWS = 16_384


class BadRow(ValueError):
    """A row that cannot be predicted; the message is the reason."""


@dataclass(frozen=True)
class Needs:
    """What a model reads of a row, and what a row may lack."""

    read: tuple[Modality, ...]
    may_lack: tuple[Modality, ...]
    normalize: tuple[str, ...]

    @classmethod
    def of(cls, export: Export) -> Needs:
        """What the model of `export` needs."""
        settings = export.preprocessing
        reads = {"text": settings.max_tokens is not None, "image": settings.image is not None}
        read = tuple(name for name in MODALITIES if reads[name])
        lacking = tuple(name for name in export.may_lack if name in read)
        return cls(read, lacking, settings.packed_normalize)

    def text(self, text: str) -> str | None:
        """The packed form of a text, None for an empty one. Raises `BadRow`.

        A model that reads no text is given an empty one in place of a bad one.
        """
        try:
            return text_as_packed(text, self.normalize)
        except BadText as error:
            if error.kind == "empty" or "text" not in self.read:
                return None
            raise BadRow(f"text: {error}") from None

    def check(self, *, has_text: bool, has_image: bool) -> None:
        """Raise `BadRow` where a row lacks what the model cannot do without."""
        given = {"text": has_text, "image": has_image}
        if not any(given[name] for name in self.read):
            raise BadRow(f"the row has no {' and no '.join(self.read)}")
        for name in self.read:
            if not given[name] and name not in self.may_lack:
                raise BadRow(
                    f"the row has no {name}, and the model was not trained for a missing one"
                )


@dataclass
class Window:
    """Some rows that follow each other in an input, by their place in the window.

    `usable` (n,) are the places that can be predicted as far as is known without the images, with
    their text `lengths` (n,), in characters, and `key_hashes` (n,). `problems` has the others.
    """

    first: int  # number of its first row in the input, from 0
    size: int
    usable: IntArray
    lengths: IntArray
    key_hashes: KeyArray
    problems: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedRow:
    """One row as the model reads it: its view (3, S, S), and cells that only reading it shows."""

    sample: RawSample
    view: Tensor | None
    cells: dict[str, Any] | None = None


class Source(ABC):
    """An input. Picklable: each loader process reads its own copy from the start."""

    path: Path
    columns: tuple[str, ...]  # of the output, before the results

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows. It may have to read the input once."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Values that JSON can hold and that change where the input does, for --resume."""

    @abstractmethod
    def windows(self) -> Iterator[Window]:
        """All rows, in their order. `load` reads rows of the last window alone."""

    @abstractmethod
    def load(self, place: int) -> LoadedRow:
        """The row at a place of the current window. Raises `BadRow`."""

    @abstractmethod
    def cells(self) -> Iterator[Mapping[str, Any] | None]:
        """The cells of every row for the output; None where they come from `load`."""

    def arrow_fields(self) -> dict[str, Any]:
        """The types of columns as pyarrow's fields, where the input has any."""
        return {}


def window_of(
    first: int,
    size: int,
    usable: list[int],
    lengths: list[int],
    hashes: list[int],
    problems: dict[int, str],
) -> Window:
    """A window from lists."""
    return Window(
        first,
        size,
        np.array(usable, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(hashes, dtype=np.uint64),
        problems,
    )
