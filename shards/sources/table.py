"""A user's own table of texts, image paths and labels; `rows.py` has the formats.

Paths are relative to the file's folder (`image_paths.py`). Ids come from the id column
(`--id-column`, or one called id). Without one a row's number is its id, so appending rows keeps the
ids of those before them. A column called split, or `--split-column`, is the user's own split. The
samples read are the rows that are not blank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmsa.errors import UserError
from shards.class_names import ClassNames, class_names, unknown
from shards.example import Example, OwnSplit, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.missing_values import is_missing
from shards.sources.columns import Repetitions, find_column
from shards.sources.dataset_name import name_from
from shards.sources.image_paths import ImagePaths
from shards.sources.rows import Row, Table, cell_text, open_table, undecoded
from shards.sources.settings import ClassesSettings, clean_text
from shards.sources.source import Source, register_source
from shards.splits.names import split_named

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
    split: str | None


@dataclass
class _Counts:
    """What the first reading of a table counts: all rows, and the rows of each label and split."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)


class TableSettings(ClassesSettings):
    """Of a table; a column that is None is found by its usual names."""

    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    split_column: str | None = None


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
        repetitions = Repetitions()
        counts = _count(table, columns, repetitions, settings)
        if not counts.labels:
            raise UserError(f"{raw} has no label in its column '{columns.label}'")
        where = f"the column '{columns.label}' of {raw}"
        if settings.classes is None and len(counts.labels) > _MOST_CLASSES:
            raise UserError(
                f"{where} has {len(counts.labels):,} different values; at most {_MOST_CLASSES:,} "
                "classes can be packed. Name another column with --label-column, or the classes "
                "with --classes"
            )
        names = class_names(counts.labels, settings.classes, settings.similar_classes, where=where)
        quoted: Counter[str] = Counter()
        dataset = settings.dataset or name_from(raw.stem, source=NAME)
        items = _items(raw, dataset, table, columns, repetitions, names, settings)
        merged = {"merged_labels": names.merged} if settings.similar_classes == "merge" else {}
        return RawData(
            total=counts.rows,
            items=_counted(items, quoted),
            classes=names.names,
            dataset=dataset,
            label_rule=GIVEN,
            # Many of them mean that a TSV was written with quotes, which it does not have.
            facts=lambda: {"texts_in_quotes": quoted["quoted"], **merged},
            classes_are="found" if settings.classes is None else "stated",
            labels=counts.labels,
            own_split=_own_split(columns, counts),
        )


def _count(
    table: Table, columns: _Columns, repetitions: Repetitions, settings: TableSettings
) -> _Counts:
    counts = _Counts()
    for position, row in enumerate(table.rows(), start=1):
        counts.rows += 1
        if row.problem is not None or _repeats_header(row, columns):
            continue
        repetitions.note(_id(row, position, columns), row.number, _content(row, columns))
        label = (cell_text(row.cells.get(columns.label)) or "").strip()
        if label and not undecoded(label) and not _no_label(label, settings):
            counts.labels[label] += 1
        if columns.split is not None:
            counts.splits[_split_cell(row, columns.split)] += 1
    return counts


def _own_split(columns: _Columns, counts: _Counts) -> OwnSplit | None:
    if columns.split is None:
        return None
    named: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for cell, number in counts.splits.items():
        split = split_named(cell)
        if split is not None:
            named[split] += number
        elif cell:
            unknown[cell] += number
    return OwnSplit(columns.split, named, unknown)


def _split_cell(row: Row, column: str) -> str:
    """The cell of the split as text; empty where it is missing."""
    cell = (cell_text(row.cells.get(column)) or "").strip()
    return "" if is_missing(cell) else cell


def _repeats_header(row: Row, columns: _Columns) -> bool:
    """Whether the row is the header again, as where several files were joined."""
    names = (columns.text, columns.image, columns.label)
    return all(str(row.cells.get(name)).strip() == name for name in names)


def _no_label(label: str, settings: TableSettings) -> bool:
    """Whether the cell says that there is no label. A word that is a class by name is one."""
    return is_missing(label) and label not in (settings.classes or ())


def _counted(
    items: Iterator[Example | Rejected], counts: Counter[str]
) -> Iterator[Example | Rejected]:
    for item in items:
        if isinstance(item, Example) and len(item.text) > 1:
            counts["quoted"] += item.text[0] == item.text[-1] == '"'
        yield item


def _columns(table: Table, settings: TableSettings) -> _Columns:
    def find(what: str, given: str | None, usual: Sequence[str]) -> str:
        return find_column(
            table.columns,
            given,
            usual,
            what=what,
            flag=f"--{what}-column",
            separated_by=table.separated_by,
        )

    def find_if_any(name: str, given: str | None) -> str | None:
        named = [column.strip().casefold() for column in table.columns].count(name)
        return find(name, given, (name,)) if given is not None or named == 1 else None

    return _Columns(
        find("text", settings.text_column, _USUAL_TEXT),
        find("image", settings.image_column, _USUAL_IMAGE),
        find("label", settings.label_column, _USUAL_LABEL),
        find_if_any("id", settings.id_column),
        find_if_any("split", settings.split_column),
    )


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
    names: ClassNames,
    settings: TableSettings,
) -> Iterator[Example | Rejected]:
    paths = ImagePaths(raw.parent)
    for position, row in enumerate(table.rows(), start=1):
        source_id = _id(row, position, columns)
        shown = source_id.encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            if row.problem is not None:
                raise Reject(Reason.ROW, f"row {row.number}: {row.problem}")
            if _repeats_header(row, columns):
                raise Reject(Reason.ROW, f"row {row.number} repeats the header")
            if not source_id or undecoded(source_id):
                raise Reject(Reason.BAD_ID, f"row {row.number}: {shown!r}")
            repetitions.check(source_id, row.number)
            yield _example(paths, dataset, row, source_id, columns, names, settings)
        except Reject as reject:
            yield Rejected(shown, reject.reason, reject.detail)


def _example(
    paths: ImagePaths,
    dataset: str,
    row: Row,
    source_id: str,
    columns: _Columns,
    names: ClassNames,
    settings: TableSettings,
) -> Example:
    text, image, label = (
        _cell(row, name, settings) for name in (columns.text, columns.image, columns.label)
    )
    label = label.strip()
    if _no_label(label, settings):
        raise Reject(Reason.NO_LABEL, f"row {row.number}" + (f": {label!r}" if label else ""))
    name = names.class_of(label)
    if name is None:
        raise Reject(Reason.UNKNOWN_LABEL, f"row {row.number}: {unknown(label, names.names)}")
    image_path = paths.find(image, row=row.number)
    return Example(
        key=f"{dataset}-{key_part(source_id)}",
        source_id=source_id,
        dataset=dataset,
        text=clean_text(text, settings, detail=f"row {row.number}"),
        image_path=image_path,
        label=name,
        split=None if columns.split is None else split_named(_split_cell(row, columns.split)) or "",
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
