"""Rows of a table file: CSV, TSV, JSONL, Parquet, XLSX. The suffix says which.

CSV follows RFC 4180: fields in double quotes may contain separators and line ends. The separator is
found by `delimited.py`. TSV is IANA's text/tab-separated-values, which has no quoting: a quotation
mark is part of the text. A file that cannot be read (a quote that never closes, no
header) raises `UserError`; a single damaged row becomes a `Row` with a `problem`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json
from mmsa.raw_files.delimited import Separator, marked_encoding, separator_of
from mmsa.raw_files.numbers import plain_number
from mmsa.raw_files.unique_names import unique_names

_LARGEST_FIELD = 1_000_000  # characters; a longer field has an unclosed quote


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its line (or row) number in the file from 1, and its cells by the table's `keys`.

    Cells are strings; some formats also have numbers and None. `problem` is set where the row does
    not parse. Bytes that are not in the encoding become lone surrogates in the cells.
    """

    number: int
    cells: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """An opened table; `rows()` reads it from the start each time. Blank rows are skipped.

    `separated_by` names the character between the fields, for messages; None where there is none.
    """

    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    separated_by: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """A name for each column: its own, with a number behind it where one before has it."""
        return unique_names(self.columns)


def open_table(path: Path, *, encoding: str | None = None) -> Table:
    """Open the table at `path` and read its column names.

    `encoding` is that of CSV, TSV and JSONL: UTF-8 where None. A byte order mark decides, whatever
    `encoding` is. Raises `UserError` for an unknown suffix and, here or while rows are
    read, for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(
            f"{path} is not a table that can be read; expected a file named "
            f"{', '.join('*' + known for known in _READERS)}"
        )
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "not a file name"
        raise UserError(f"the table {path} cannot be read ({said})") from None
    return _READERS[suffix](path, marked_encoding(start) or encoding or "utf-8-sig")


def cell_text(value: object) -> str | None:
    """A cell as text; None where it is neither text nor a number. Missing cells are empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value != value:  # pandas' missing value
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # XLSX has no integers
    if isinstance(value, int | float | Decimal):
        return plain_number(str(value))
    return None


def undecoded(text: str) -> bool:
    """Whether `text` has bytes that were not in the encoding."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _text(file: BinaryIO, encoding: str, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline)


def _named(path: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    if not any(columns):
        raise UserError(f"the table {path} has no header; its first line must name the columns")
    return columns


def _fields(number: int) -> str:
    return f"{number} {'field' if number == 1 else 'fields'}"


def _joined(number: int, keys: tuple[str, ...], cells: list[Any]) -> Row:
    difference = len(cells) - len(keys)
    if difference:
        what = _fields(abs(difference))
        said = f"{what} too many: a text with separators must be in quotes"
        return Row(
            number,
            problem=f"{_fields(len(cells))}, the header has {len(keys)}: "
            + (f"{what} short" if difference < 0 else said),
        )
    return Row(number, dict(zip(keys, cells, strict=True)))


def _csv(path: Path, encoding: str) -> Table:
    separator = _separator(path, encoding)

    def lines() -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(_LARGEST_FIELD)
        with path.open("rb") as file:
            text = _text(file, encoding, "")
            before = 0
            if separator.marked:  # blank lines may come before the mark
                before = next(number for number, line in enumerate(text, 1) if line.strip())
            reader = csv.reader(text, strict=True, delimiter=separator.character)
            while True:
                number = reader.line_num + 1 + before
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except (csv.Error, UnicodeError) as error:
                    raise UserError(
                        f"the table {path} is not a CSV file: {error}, in the row that starts at "
                        f"line {number}. Its fields are separated by {separator}. Put fields with "
                        "quotes, separators or line ends in double quotes, and double the quotes "
                        "inside"
                    ) from None
                if any(cells):
                    yield number, cells

    return _with_header(path, lines, separator)


def _separator(path: Path, encoding: str) -> Separator:
    """The separator of the CSV at `path`, from its first line that is not blank."""
    with path.open("rb") as file:
        try:
            lines = (line for line in _text(file, encoding, "") if line.strip())
            return separator_of(next(lines, ""))
        except UnicodeError as error:
            raise UserError(f"the table {path} is not in {encoding}: {error}") from None


def _tsv(path: Path, encoding: str) -> Table:
    def lines() -> Iterator[tuple[int, list[str]]]:
        with path.open("rb") as file:
            for place, (number, line) in enumerate(_lines(path, file, encoding)):
                if place or not separator_of(line).marked:
                    yield number, line.split("\t")

    return _with_header(path, lines, Separator("\t"))


def _with_header(
    path: Path, lines: Callable[[], Iterator[tuple[int, list[str]]]], separator: Separator
) -> Table:
    columns = _named(path, next(lines(), (0, []))[1])
    keys = unique_names(columns)

    def rows() -> Iterator[Row]:
        read = lines()
        next(read)
        for number, cells in read:
            yield _joined(number, keys, cells)

    return Table(columns, rows, str(separator))


def _lines(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    """(number, line) of each line that is not blank; a line ends at LF, with or without CR."""
    try:
        for number, line in enumerate(_text(file, encoding, "\n"), start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")
    except UnicodeError as error:
        raise UserError(f"the table {path} is not in {encoding}: {error}") from None


def _jsonl(path: Path, encoding: str) -> Table:
    def rows() -> Iterator[Row]:
        with path.open("rb") as file:
            for number, line in _lines(path, file, encoding):
                try:
                    cells = parse_json(line)
                except ValueError:
                    yield Row(number, problem="no JSON")
                    continue
                if isinstance(cells, dict):
                    yield Row(number, cells)
                else:
                    yield Row(number, problem=f"no JSON object but {type(cells).__name__}")

    # An object may leave a field out, so the columns are those of all rows.
    columns = tuple(dict.fromkeys(name for row in rows() for name in row.cells))
    if not columns:
        raise UserError(f"the table {path} has no JSON object; expected one on each line")
    return Table(columns, rows)


def _parquet(path: Path, encoding: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"reading {path} needs pyarrow; install it: pip install 'mmsa[parquet]'"
        ) from None

    faults = (pyarrow.ArrowException, OSError, ValueError)  # ValueError: names that are not UTF-8
    try:
        columns = tuple(pyarrow.parquet.ParquetFile(path).schema_arrow.names)
    except faults as error:
        raise UserError(_damaged(path, "Parquet", error)) from None
    keys = list(unique_names(columns))

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000):
                named = pyarrow.RecordBatch.from_arrays(batch.columns, names=keys)
                for cells in named.to_pylist():
                    number += 1
                    yield Row(number, cells)
        except faults as error:
            raise UserError(_damaged(path, "Parquet", error)) from None

    return Table(columns, rows)


def _xlsx(path: Path, encoding: str) -> Table:
    import python_calamine

    try:
        workbook = python_calamine.CalamineWorkbook.from_path(path)
        sheet = workbook.get_sheet_by_index(0).to_python(skip_empty_area=False)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        # Its panics on damaged files derive directly from BaseException.
        raise UserError(_damaged(path, "XLSX", error)) from None
    filled = [(number, cells) for number, cells in enumerate(sheet, 1) if _not_blank(cells)]
    if not filled:
        raise UserError(f"the first sheet of {path} is empty; expected a header and rows")
    columns = _named(path, [cell_text(cell) or "" for cell in filled[0][1]])
    keys = unique_names(columns)

    def rows() -> Iterator[Row]:
        for number, cells in filled[1:]:
            yield _joined(number, keys, cells)

    return Table(columns, rows)


def _not_blank(cells: list[Any]) -> bool:
    return any(cell not in ("", None) for cell in cells)


def _damaged(path: Path, what: str, error: BaseException) -> str:
    said = str(error).splitlines()
    return f"the table {path} cannot be read as {what}: {said[0] if said else type(error).__name__}"


_READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
}
