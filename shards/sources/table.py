"""A user's own table of texts, image paths and labels; `rows.py` has the formats.

Paths are relative to the file's folder (`image_paths.py`). Ids come from the id column
(`--id-column`, or one called id). Without one a row's number is its id, so appending rows keeps the
ids of those before them. A column called split, or `--split-column`, is the user's own split. The
samples read are the rows that are not blank. A row without an image or a text is rejected, unless
`keep_missing` keeps it; then the table needs no column for it either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsa.errors import UserError
from mmsa.raw_files.image_paths import ImagePaths, NoImageFile
from mmsa.raw_files.missing_values import is_missing
from mmsa.raw_files.rows import Row, Table, cell_text, open_table, undecoded
from shards.class_names import ClassNames, class_names, unknown
from shards.example import Example, OwnSplit, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.dataset_name import name_from
from shards.sources.repeated_ids import Repetitions
from shards.sources.settings import text_or_none
from shards.sources.source import Source, register_source
from shards.sources.table_columns import Columns, TableSettings, columns_of
from shards.splits.names import split_named

NAME = "table"
_MOST_CLASSES = 1000  # a column with more values hardly holds labels


@dataclass
class _Counts:
    """What the first reading of a table counts: all rows, and the rows of each label and split."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)


@register_source
class TableSource(Source):
    """A table file, in the order of its rows. It is read once before, for its ids and classes.

    Raises `UserError` where `raw` is not a table, lacks a column, has no labels or more than 1,000.
    """

    name = NAME
    help = "a CSV, TSV, JSONL, Parquet or XLSX file of texts, paths, labels"
    Settings = TableSettings
    names_images = True

    def read(self, raw: Path, settings: TableSettings) -> RawData:
        if raw.is_dir():
            raise UserError(f"{raw} is a folder; the source {NAME} takes the path of a table file")
        table = open_table(raw, encoding=settings.encoding)
        columns = columns_of(table, settings)
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
    table: Table, columns: Columns, repetitions: Repetitions, settings: TableSettings
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


def _own_split(columns: Columns, counts: _Counts) -> OwnSplit | None:
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


def _repeats_header(row: Row, columns: Columns) -> bool:
    """Whether the row is the header again, as where several files were joined."""
    names = filter(None, (columns.text, columns.image, columns.label))
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


def _content(row: Row, columns: Columns) -> list[object]:
    names = (columns.text, columns.image, columns.label)
    return [None if name is None else row.cells.get(name) for name in names]


def _id(row: Row, position: int, columns: Columns) -> str:
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
    columns: Columns,
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
            yield reject.of(shown)


def _example(
    paths: ImagePaths,
    dataset: str,
    row: Row,
    source_id: str,
    columns: Columns,
    names: ClassNames,
    settings: TableSettings,
) -> Example:
    text, image, label = (
        "" if name is None else _cell(row, name, settings)
        for name in (columns.text, columns.image, columns.label)
    )
    label = label.strip()
    if _no_label(label, settings):
        raise Reject(Reason.NO_LABEL, f"row {row.number}" + (f": {label!r}" if label else ""))
    name = names.class_of(label)
    if name is None:
        raise Reject(Reason.UNKNOWN_LABEL, f"row {row.number}: {unknown(label, names.names)}")
    image_path = _image_or_none(paths, image, row.number, settings)
    text = text_or_none(text, settings, detail=f"row {row.number}")
    if not text and image_path is None:
        raise Reject(Reason.NEITHER, f"row {row.number}")
    return Example(
        key=f"{dataset}-{key_part(source_id)}",
        source_id=source_id,
        dataset=dataset,
        text=text,
        image_path=image_path,
        label=name,
        split=None if columns.split is None else split_named(_split_cell(row, columns.split)) or "",
    )


def _image_or_none(paths: ImagePaths, cell: str, row: int, settings: TableSettings) -> Path | None:
    """The file that a cell names; None for a cell that names none, where such rows are kept.

    A path to a file that does not exist is an error of the data, not a row without an image.
    """
    try:
        return paths.find(cell)
    except NoImageFile as error:
        if error.kind == "none" and "image" in settings.keep_missing:
            return None
        reason = Reason.IMAGE_URL if error.kind == "address" else Reason.NO_IMAGE
        raise Reject(reason, error.in_row(row), no_file=error.kind == "absent") from None


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
