"""A table as an input: CSV, TSV, JSONL, Parquet or XLSX, read as packing reads it.

The columns of text, image and id are found by their usual names or named. All columns are carried
over. Paths of images are relative to the folder of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.prediction.inputs.raw_rows import RawRow, RawRows
from mmsa.prediction.inputs.source import BadRow, Needs
from mmsa.preprocessing import Preprocessing
from mmsa.raw_files.columns import (
    USUAL_IMAGE,
    USUAL_TEXT,
    find_column,
    has_column,
    no_input_columns,
)
from mmsa.raw_files.image_paths import ImagePaths, NoImageFile
from mmsa.raw_files.keys import key_of
from mmsa.raw_files.rows import Row, Table, cell_text, open_table, undecoded


@dataclass(frozen=True)
class TableColumns:
    """The names of the columns that are read; None for those that the table need not have."""

    text: str | None
    image: str | None
    id: str | None
    key: str | None


class TableRows(RawRows):
    """The rows of a table file. Raises `UserError` where it is none or lacks a column."""

    def __init__(
        self,
        path: Path,
        needs: Needs,
        preprocessing: Preprocessing,
        *,
        dataset: str,
        encoding: str | None = None,
        text_column: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        """`dataset` is that of the model: an id then gives the key that the evaluation knows."""
        self.path, self.needs, self.preprocessing = path, needs, preprocessing
        self._dataset, self._encoding = dataset, encoding
        table = self._table()
        self.columns = table.keys
        self.read = _columns_of(table, needs, text_column, image_column, id_column)
        self._num_rows: int | None = None

    def _table(self) -> Table:
        return open_table(self.path, encoding=self._encoding)

    def __len__(self) -> int:
        if self._num_rows is None:
            self._num_rows = sum(1 for _ in self._table().rows())
        return self._num_rows

    def identity(self) -> dict[str, Any]:
        """Path, size, time of the last change, and the columns that are read."""
        found = self.path.stat()
        return {
            "input": str(self.path.resolve()),
            "bytes": found.st_size,
            "changed": found.st_mtime_ns,
            "columns": [self.read.text, self.read.image, self.read.id, self.read.key],
            "encoding": self._encoding,
        }

    def cells(self) -> Iterator[Mapping[str, Any]]:
        """The cells of every row; none of a row that does not parse."""
        return (row.cells for row in self._table().rows())

    def arrow_fields(self) -> dict[str, Any]:
        """The fields of a Parquet file."""
        if self.path.suffix.lower() != ".parquet":
            return {}
        from pyarrow import parquet

        schema = parquet.ParquetFile(self.path).schema_arrow
        return dict(zip(self.columns, schema, strict=True))

    def rows(self) -> Iterator[RawRow]:
        """The rows as the model reads them."""
        paths = ImagePaths(self.path.parent)
        for position, row in enumerate(self._table().rows(), start=1):
            key = self._key(row, position)
            try:
                text, image = self._content(row, paths)
            except BadRow as error:
                yield RawRow(key, problem=str(error))
            else:
                yield RawRow(key, text, image)

    def _content(self, row: Row, paths: ImagePaths) -> tuple[str | None, Path | None]:
        if row.problem is not None:
            raise BadRow(row.problem)
        text = self._text(row)
        image = None
        if "image" in self.needs.read:
            try:
                image = paths.find(self._cell(row, self.read.image))
            except NoImageFile as error:
                if error.kind != "none" or "image" not in self.needs.may_lack:
                    raise BadRow(f"image: {error}") from None
        self.needs.check(has_text=text is not None, has_image=image is not None)
        return text, image

    def _text(self, row: Row) -> str | None:
        """The text in packed form. Of a model that reads none it only decides about the order."""
        try:
            return self.needs.text(self._cell(row, self.read.text))
        except BadRow:
            if "text" in self.needs.read:
                raise
            return None

    def _cell(self, row: Row, column: str | None) -> str:
        if column is None:
            return ""
        value = row.cells.get(column)
        text = cell_text(value)
        if text is None:
            raise BadRow(f"{column} is {type(value).__name__}, expected text")
        if undecoded(text):
            encoding = self._encoding or "utf-8"
            raise BadRow(f"{column} is not {encoding}; see --encoding")
        return text

    def _key(self, row: Row, position: int) -> str:
        names = self.read
        known = cell_text(row.cells.get(names.key)) if names.key is not None else None
        if known:
            return known.encode("utf-8", "backslashreplace").decode("utf-8")
        source_id = cell_text(row.cells.get(names.id)) if names.id is not None else None
        return key_of(self._dataset, (source_id or "").strip() or str(position))


def _columns_of(
    table: Table, needs: Needs, text: str | None, image: str | None, id_column: str | None
) -> TableColumns:
    """The columns as named, else by their usual names; a missing one only where rows may lack it.

    Raises `UserError`.
    """

    def by_name(*names: str) -> str | None:
        named = [column for column in table.columns if column.strip().casefold() in names]
        return named[0] if len(named) == 1 else None

    def find(what: str, given: str | None, usual: tuple[str, ...]) -> str | None:
        needed = what in needs.read and what not in needs.may_lack
        if given is None and not needed and not has_column(table.columns, usual):
            return None
        if given is None and what not in needs.read:
            return by_name(*usual)
        return find_column(table, given, usual, what=what)

    found = TableColumns(
        find("text", text, USUAL_TEXT),
        find("image", image, USUAL_IMAGE),
        find("id", id_column, ()) if id_column is not None else by_name("id"),
        by_name("key"),
    )
    if not any(getattr(found, name) for name in needs.read):
        raise no_input_columns(table.columns)
    return found


def check_table(path: Path) -> None:
    """Raise `UserError` for a path that is neither a file nor a folder."""
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a table (CSV, TSV, JSONL, Parquet), a folder of images with "
            "texts, or packed shards"
        )
