"""A user's own table of texts, picture paths and labels; `rows.py` has the formats.

Paths are relative to the file's folder. An id is that of the id column (`--id-column`, or one
called id), else the number of the row, so that adding rows at the end keeps the ids before them.
Read is every row that is not blank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.columns import Repetitions, find_column
from shards.sources.options import DEFAULT, SourceOptions, clean_text
from shards.sources.rows import Row, Table, cell_text, open_table, undecoded

NAME = "table"
_USUAL_TEXT = ("text", "tweet", "caption", "sentence")
_USUAL_IMAGE = ("image", "image_path", "picture", "path", "file_name", "filename")
_USUAL_LABEL = ("label", "sentiment", "class")
_MOST_CLASSES = 1000  # a column with more is hardly one of labels


@dataclass(frozen=True)
class _Columns:
    text: str
    image: str
    label: str
    id: str | None


def open_raw(raw: Path, options: SourceOptions = DEFAULT) -> RawData:
    """Read through the table file `raw` once, for its ids and classes.

    Raises `UserError` where it is no table, lacks a column, has no labels or more than 1,000.
    Items come in the order of the rows.
    """
    options.refuse_rule(NAME)
    if raw.is_dir():
        raise UserError(f"{raw} is a folder; the source {NAME} takes the path of a table file")
    table = open_table(raw, encoding=options.encoding)
    columns = _columns(table, options)
    total = 0
    repetitions = Repetitions()
    labels: Counter[str] = Counter()
    for position, row in enumerate(table.rows(), start=1):
        total += 1
        if row.problem is None:
            repetitions.note(_id(row, position, columns), row.number, _content(row, columns))
            label = cell_text(row.cells.get(columns.label))
            if label and not undecoded(label):
                labels[label.strip()] += 1
    classes = _classes(raw, columns, labels, options)
    counts: Counter[str] = Counter()
    items = _items(raw, table, columns, repetitions, classes, options)
    return RawData(
        total=total,
        items=_counted(items, counts),
        classes=classes,
        dataset=NAME,
        label_rule=GIVEN,
        # Many would say that a TSV was written with quotes, which its readers take for text.
        facts=lambda: {"texts_in_quotes": counts["quoted"]},
    )


def _counted(
    items: Iterator[Example | Rejected], counts: Counter[str]
) -> Iterator[Example | Rejected]:
    for item in items:
        if isinstance(item, Example) and len(item.text) > 1:
            counts["quoted"] += item.text[0] == item.text[-1] == '"'
        yield item


def _columns(table: Table, options: SourceOptions) -> _Columns:
    names = table.columns
    given = options.id_column
    has_id = given is not None or [name.casefold() for name in names].count("id") == 1
    return _Columns(
        find_column(names, options.text_column, _USUAL_TEXT, what="text", flag="--text-column"),
        find_column(names, options.image_column, _USUAL_IMAGE, what="image", flag="--image-column"),
        find_column(names, options.label_column, _USUAL_LABEL, what="label", flag="--label-column"),
        find_column(names, given, ("id",), what="id", flag="--id-column") if has_id else None,
    )


def _classes(
    raw: Path, columns: _Columns, labels: Counter[str], options: SourceOptions
) -> tuple[str, ...]:
    if options.classes is not None:
        return options.classes
    names = sorted(name for name in labels if name)
    if not names:
        raise UserError(f"{raw} has no label in its column '{columns.label}'")
    if len(names) > _MOST_CLASSES:
        raise UserError(
            f"the column '{columns.label}' of {raw} has {len(names):,} different values; more than "
            f"{_MOST_CLASSES:,} classes are not packed. Name another with --label-column, or the "
            f"classes with --classes"
        )
    return tuple(names)


def _content(row: Row, columns: _Columns) -> list[object]:
    return [row.cells.get(name) for name in (columns.text, columns.image, columns.label)]


def _id(row: Row, position: int, columns: _Columns) -> str:
    """The id of a row: its id cell, else its position; empty where the cell has nothing usable."""
    if columns.id is None:
        return str(position)
    if row.problem is not None:
        return ""
    return (cell_text(row.cells.get(columns.id)) or "").strip()


def _items(
    raw: Path,
    table: Table,
    columns: _Columns,
    repetitions: Repetitions,
    classes: tuple[str, ...],
    options: SourceOptions,
) -> Iterator[Example | Rejected]:
    for position, row in enumerate(table.rows(), start=1):
        source_id = _id(row, position, columns)
        shown = source_id.encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            if row.problem is not None:
                raise Reject(Reason.ROW, f"row {row.number}: {row.problem}")
            if not source_id or undecoded(source_id):
                raise Reject(Reason.BAD_ID, f"row {row.number}: {shown!r}")
            repetitions.check(source_id, row.number)
            yield _example(raw, row, source_id, columns, classes, options)
        except Reject as reject:
            yield Rejected(shown, reject.reason, reject.detail)


def _example(
    raw: Path,
    row: Row,
    source_id: str,
    columns: _Columns,
    classes: tuple[str, ...],
    options: SourceOptions,
) -> Example:
    text, image, label = (
        _cell(row, name, options) for name in (columns.text, columns.image, columns.label)
    )
    label = label.strip()
    if not label:
        raise Reject(Reason.NO_LABEL, f"row {row.number}")
    if label not in classes:
        detail = f"row {row.number}: {label[:80]!r}; expected {', '.join(classes[:20])}"
        raise Reject(Reason.UNKNOWN_LABEL, detail)
    if not image.strip():
        raise Reject(Reason.NO_IMAGE, f"row {row.number} names no picture")
    return Example(
        key=f"{NAME}-{key_part(source_id)}",
        source_id=source_id,
        dataset=NAME,
        text=clean_text(text, options, detail=f"row {row.number}"),
        image_path=raw.parent / image.strip(),
        label=label,
        text_label=None,
        image_label=None,
    )


def _cell(row: Row, name: str, options: SourceOptions) -> str:
    value = row.cells.get(name)
    text = cell_text(value)
    if text is None:
        kind = type(value).__name__
        raise Reject(Reason.ROW, f"row {row.number}: {name} is {kind}, expected text")
    if undecoded(text):
        encoding = options.encoding or "utf-8"
        raise Reject(Reason.OTHER_ENCODING, f"row {row.number}: {name} is not {encoding}")
    return text
