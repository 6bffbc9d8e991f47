"""The rows of an input with their results, as CSV, TSV, JSONL or Parquet: by the ending of OUT.

Written under a temporary name and renamed when it is whole. Columns: those of the input, then
`label`, `confidence`, `probability_CLASS` of each class, `error`. A column of the input that is
called like one of these gets the prefix `input_`. A row without a prediction has an `error`, and
nothing in the other new columns.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mmsa.errors import UserError
from mmsa.predicted import probability_columns
from mmsa.raw_files.numbers import plain_number

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_PARQUET_ROWS = 4096  # of a row group, which is in memory until it is written


def check_ending(out: Path) -> None:
    """Raise `UserError` for a file that cannot be written: an unknown ending, or no pyarrow."""
    if out.suffix.lower() not in ENDINGS:
        raise UserError(
            f"--out {out}: its ending says the format; expected one of {', '.join(ENDINGS)}"
        )
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a file")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                f"writing {out} needs pyarrow: pip install 'mmsa[parquet]', or choose .jsonl"
            ) from None


class Columns:
    """The columns of the output, for rows of an input with `given` columns."""

    def __init__(self, given: Sequence[str], label_names: Sequence[str]) -> None:
        self.label_names = tuple(label_names)
        self.probabilities = probability_columns(label_names)
        self.results = ("label", "confidence", *self.probabilities, "error")
        self.given = {name: self._free(name, given) for name in given}
        self.names = (*self.given.values(), *self.results)

    def _free(self, name: str, given: Sequence[str]) -> str:
        while name in self.results:
            name = f"input_{name}"
            while name in given:
                name = f"input_{name}"
        return name

    def predicted(self, cells: Mapping[str, Any], probabilities: np.ndarray) -> dict[str, Any]:
        """A row with `probabilities` (C,) float64, which are written as float32."""
        best = int(probabilities.argmax())
        values = [_float32(value) for value in probabilities]
        shown = dict(zip(self.probabilities, values, strict=True))
        label = self.label_names[best]
        return {**self._given(cells), "label": label, "confidence": values[best], **shown}

    def failed(self, cells: Mapping[str, Any], error: str) -> dict[str, Any]:
        """A row that cannot be predicted."""
        return {**self._given(cells), "error": error}

    def _given(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        return {self.given[name]: value for name, value in cells.items() if name in self.given}


def _float32(value: float) -> float:
    """The shortest number that reads back as the same float32."""
    return float(str(np.float32(value)))


class Writer(ABC):
    """Writes rows to a temporary file, which takes the place of `out` at the end of `with`.

    Where the block raises, `out` stays as it was. Raises `UserError` where it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        self._file: Any = None

    def __enter__(self) -> Writer:
        try:
            self._file = open(self._temporary, "wb")
            self._begin()
        except OSError as error:
            raise self._refused(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._end()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.out)
        except OSError as failed:
            raise self._refused(failed) from None
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{self.out} cannot be written ({error.strerror or error}); what is predicted is kept: "
            "mend that and repeat the command with --resume"
        )

    @abstractmethod
    def _begin(self) -> None:
        """Write what precedes the rows."""

    @abstractmethod
    def _end(self) -> None:
        """Write what follows them."""

    @abstractmethod
    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; a column that it lacks is empty."""


class JsonLines(Writer):
    """One object a line, with the fields that the row has, in their types."""

    def _begin(self) -> None:
        """Nothing precedes the rows."""

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
        except ValueError:  # JSON has no NaN, tables have
            line = json.dumps(_without_nan(row), ensure_ascii=False, default=str)
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _end(self) -> None:
        """Nothing follows them."""


def _without_nan(value: Any) -> Any:
    """`value` with None for numbers that are not finite, at any depth."""
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Delimited(Writer):
    """CSV as RFC 4180 has it, or TSV, which has no quotes: there a tab or a line end in a cell
    becomes a blank."""

    def __init__(self, out: Path, columns: Columns, *, tabs: bool) -> None:
        super().__init__(out)
        self._names, self._tabs = columns.names, tabs

    def _begin(self) -> None:
        self._text = io.TextIOWrapper(
            self._file, encoding="utf-8", errors="backslashreplace", newline=""
        )
        # With CRLF, as RFC 4180 has it: only characters of the line end get quotes in a cell.
        self._csv = csv.writer(self._text)
        self._line(self._names)

    def write(self, row: Mapping[str, Any]) -> None:
        self._line([_as_text(row.get(name)) for name in self._names])

    def _line(self, cells: Sequence[str]) -> None:
        if self._tabs:
            self._text.write("\t".join(" ".join(_lines(cell)) for cell in cells) + "\n")
        else:
            self._csv.writerow(cells)

    def _end(self) -> None:
        self._text.flush()


def _lines(cell: str) -> list[str]:
    return cell.replace("\t", "\n").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return plain_number(str(value))


class Parquet(Writer):
    """Columns of a Parquet input keep their types; those of other inputs are texts."""

    def __init__(self, out: Path, columns: Columns, fields: Mapping[str, Any]) -> None:
        super().__init__(out)
        import pyarrow

        new = {"label": pyarrow.string(), "error": pyarrow.string()}
        numbers = dict.fromkeys(("confidence", *columns.probabilities), pyarrow.float32())
        given = {
            shown: fields[name].type if name in fields else pyarrow.string()
            for name, shown in columns.given.items()
        }
        types = {**given, **new, **numbers}
        self._schema = pyarrow.schema([(name, types[name]) for name in columns.names])
        self._as_text = {shown for name, shown in columns.given.items() if name not in fields}
        self._rows: list[dict[str, Any]] = []

    def _begin(self) -> None:
        from pyarrow import parquet

        self._parquet = parquet.ParquetWriter(self._file, self._schema)

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(
            {
                name: _clean(value) if name in self._as_text and value is not None else value
                for name, value in row.items()
            }
        )
        if len(self._rows) == _PARQUET_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _end(self) -> None:
        self._flush()
        self._parquet.close()


def _clean(value: Any) -> str:
    """As text that UTF-8 can hold."""
    return _as_text(value).encode("utf-8", "backslashreplace").decode("utf-8")


def writer_for(out: Path, columns: Columns, fields: Mapping[str, Any]) -> Writer:
    """The writer for the ending of `out`; `fields` are the types of columns, where known."""
    ending = out.suffix.lower()
    if ending == ".parquet":
        return Parquet(out, columns, fields)
    if ending in (".csv", ".tsv"):
        return Delimited(out, columns, tabs=ending == ".tsv")
    return JsonLines(out)
