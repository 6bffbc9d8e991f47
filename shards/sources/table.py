"""A user's own table of texts, image paths and labels; `rows.py` has the formats.

Paths are relative to the file's folder. Ids come from the id column (`--id-column`, or one called
id). Without one a row's number is its id, so appending rows keeps the ids of those before them. The
samples read are the rows that are not blank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.columns import Repetitions, find_column
from shards.sources.dataset_name import name_from
from shards.sources.rows import Row, Table, cell_text, open_table, undecoded
from shards.sources.settings import ClassesSettings, clean_text
from shards.sources.source import Source, register_source

NAME = "table"
_USUAL_TEXT = ("text", "tweet", "caption", "sentence")
_USUAL_IMAGE = ("image", "image_path", "picture", "path", "file_name", "filename")
_USUAL_LABEL = ("label", "sentiment", "class")
_MOST_CLASSES = 1000  # a column with more values hardly holds labels


@dataclass(frozen=True)
class _Columns:
    text: str
    image: str
    label: str
    id: str | None


class TableSettings(ClassesSettings):
    """Of a table; a column that is None is found by its usual names."""

    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None


@register_source
class TableSource(Source):
    """A table file, in the order of its rows. It is read once before, for its ids and classes.

    Raises `UserError` where `raw` is not a table, lacks a column, has no labels or more than 1,000.
    """

    name = NAME
    help = "a CSV, TSV, JSONL, Parquet or XLSX file of texts, paths, labels"
    Settings = TableSettings

    def read(self, raw: Path, settings: TableSettings) -> RawData:
        if raw.is_dir():
            raise UserError(f"{raw} is a folder; the source {NAME} takes the path of a table file")
        table = open_table(raw, encoding=settings.encoding)
        columns = _columns(table, settings)
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
        classes = _classes(raw, columns, labels, settings)
        counts: Counter[str] = Counter()
        dataset = settings.dataset or name_from(raw.stem, source=NAME)
        items = _items(raw, dataset, table, columns, repetitions, classes, settings)
        return RawData(
            total=total,
            items=_counted(items, counts),
            classes=classes,
            dataset=dataset,
            label_rule=GIVEN,
            # Many of them mean that a TSV was written with quotes, which it does not have.
            facts=lambda: {"texts_in_quotes": counts["quoted"]},
        )


def _counted(
    items: Iterator[Example | Rejected], counts: Counter[str]
) -> Iterator[Example | Rejected]:
    for item in items:
        if isinstance(item, Example) and len(item.text) > 1:
            counts["quoted"] += item.text[0] == item.text[-1] == '"'
        yield item


def _columns(table: Table, settings: TableSettings) -> _Columns:
    def find(what: str, given: str | None, usual: Sequence[str]) -> str:
        return find_column(table.columns, given, usual, what=what, flag=f"--{what}-column")

    given_id = settings.id_column
    has_id = given_id is not None or [name.casefold() for name in table.columns].count("id") == 1
    return _Columns(
        find("text", settings.text_column, _USUAL_TEXT),
        find("image", settings.image_column, _USUAL_IMAGE),
        find("label", settings.label_column, _USUAL_LABEL),
        find("id", given_id, ("id",)) if has_id else None,
    )


def _classes(
    raw: Path, columns: _Columns, labels: Counter[str], settings: TableSettings
) -> tuple[str, ...]:
    if settings.classes is not None:
        return settings.classes
    names = sorted(name for name in labels if name)
    if not names:
        raise UserError(f"{raw} has no label in its column '{columns.label}'")
    if len(names) > _MOST_CLASSES:
        raise UserError(
            f"the column '{columns.label}' of {raw} has {len(names):,} different values; at most "
            f"{_MOST_CLASSES:,} classes can be packed. Name another column with --label-column, or "
            "the classes with --classes"
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
    dataset: str,
    table: Table,
    columns: _Columns,
    repetitions: Repetitions,
    classes: tuple[str, ...],
    settings: TableSettings,
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
            yield _example(raw, dataset, row, source_id, columns, classes, settings)
        except Reject as reject:
            yield Rejected(shown, reject.reason, reject.detail)


def _example(
    raw: Path,
    dataset: str,
    row: Row,
    source_id: str,
    columns: _Columns,
    classes: tuple[str, ...],
    settings: TableSettings,
) -> Example:
    text, image, label = (
        _cell(row, name, settings) for name in (columns.text, columns.image, columns.label)
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
        key=f"{dataset}-{key_part(source_id)}",
        source_id=source_id,
        dataset=dataset,
        text=clean_text(text, settings, detail=f"row {row.number}"),
        image_path=raw.parent / image.strip(),
        label=label,
    )


def _cell(row: Row, name: str, settings: TableSettings) -> str:
    value = row.cells.get(name)
    text = cell_text(value)
    if text is None:
        kind = type(value).__name__
        raise Reject(Reason.ROW, f"row {row.number}: {name} is {kind}, expected text")
    if undecoded(text):
        encoding = settings.encoding or "utf-8"
        raise Reject(Reason.OTHER_ENCODING, f"row {row.number}: {name} is not {encoding}")
    return text
