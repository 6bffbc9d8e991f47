"""A split of packed shards as an input: the samples, order and batches of its evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.decoding import image_views
from mmsa.data.manifest import Manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import ShardDamage, UserError
from mmsa.export import Export
from mmsa.labels import ClassMap, class_map
from mmsa.prediction.inputs.source import BadRow, LoadedRow, Needs, Source, Window
from mmsa.preprocessing import Preprocessing


class ShardRows(Source):
    """The samples of a split, in the manifest's order.

    These are the samples of the evaluation: without the classes that the model was trained
    without. Where the shards have classes that the model does not know, these are all samples.
    """

    columns = ("key", "label")

    def __init__(self, path: Path | str, manifest: Manifest, split: str, export: Export) -> None:
        self.manifest_digest = manifest.digest
        self._classes = _classes(export, manifest)
        self.reader = SplitReader(path, manifest, split, self._classes)
        if not len(self.reader):
            raise UserError(f"the split '{split}' of {path} has no samples")
        self.reader.check_tars()
        self.reader.fetch_split()
        self.needs = Needs.of(export)
        self.preprocessing: Preprocessing = export.preprocessing
        self._places: np.ndarray[Any, Any] = np.empty((0, 2), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.reader)

    def identity(self) -> dict[str, Any]:
        """The manifest's digest, the split and the classes."""
        return {"input": self.reader.identity}

    def windows(self) -> Iterator[Window]:
        """One window: the whole split, as in an evaluation."""
        self._places, records = self.reader.all_records()
        yield Window(
            0,
            len(self._places),
            np.arange(len(self._places)),
            records["text_length"].astype(np.int64),
            records["key_hash"].copy(),
        )

    def load(self, place: int) -> LoadedRow:
        """The sample, with its key and label as cells. Raises `BadRow` where it is damaged."""
        try:
            sample = self.reader.read(*self._places[place].tolist())
        except ShardDamage as error:
            raise BadRow(str(error)) from None
        self.needs.check(has_text=sample.has_text, has_image=sample.has_image)
        view = None
        if sample.has_image and self.preprocessing.image is not None:
            try:
                image = image_views.decode(sample.image)
            except ValueError as error:
                raise BadRow(f"the image of {sample.key} does not decode ({error})") from None
            view = image_views.evaluation_view(image, self.preprocessing)
        cells = {"key": sample.key, "label": self._classes.names[sample.label]}
        return LoadedRow(sample._replace(image=b"", json=b""), view, cells)

    def cells(self) -> Iterator[None]:
        """None: `load` gives them."""
        return (None for _ in range(len(self)))


def _classes(export: Export, manifest: Manifest) -> ClassMap:
    try:
        return export.class_map(manifest.classes)
    except UserError:
        return class_map(manifest.classes, None)
