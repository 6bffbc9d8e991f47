"""A user's own split: a CSV or TSV file with the columns `id` and `split`.

Its separator and its encoding are found as in tables (`mmsa/raw_files/delimited.py`).
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.raw_files.delimited import Separator, marked_encoding, separator_of
from shards.splits.by_hash import SPLITS
from shards.splits.names import split_named


def read_split_file(file: str) -> tuple[dict[str, str], dict[str, Any]]:
    """(id -> split, facts for the manifest: the name and sha256 of the file).

    The first line names the columns; `id` and `split` are needed, in any case and order, others
    are ignored. Raises `UserError` where the file is different, or names an id twice.
    """
    path = Path(file)
    try:
        content = path.read_bytes()
        text = content.decode(marked_encoding(content[:4]) or "utf-8")
    except OSError as error:
        raise UserError(
            f"the split file {path} cannot be read ({error.strerror}); --protocol file:PATH needs "
            "a CSV file with the columns id and split"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the split file {path} is not UTF-8; save it as UTF-8") from None
    lines = io.StringIO(text, newline="")  # lines end as in any CSV: Excel for Mac writes \r alone
    first_line = lines.readline()
    separator = separator_of(first_line, fewest_columns=2)
    if "\t" in first_line and not separator.marked:
        separator = Separator("\t")
    if separator.marked:
        first_line = lines.readline()
    # Otherwise a quote that is not closed would take all lines below it into one cell.
    reader = csv.reader([first_line, *lines], strict=True, delimiter=separator.character)
    rows, start = [], 1
    try:
        for row in reader:
            rows.append(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"the split file {path} is not a CSV file: {error}, in the row that starts at line "
            f"{start + separator.marked}. It needs only the columns id and split"
        ) from None
    header = [column.strip().lower() for column in next(iter(rows), [])]
    if "id" not in header or "split" not in header:
        raise UserError(
            f"the split file {path} starts with the line {first_line.strip()[:80]!r} (separated by "
            f"{separator}); expected column names that include 'id' and 'split'"
        )
    id_column, split_column = header.index("id"), header.index("split")
    splits: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2 + separator.marked):
        if not any(cell.strip() for cell in row):
            continue
        cells = [cell.strip() for cell in row] + [""] * len(header)
        source_id, name = cells[id_column], cells[split_column]
        split = split_named(name)
        if not source_id or split is None:
            raise UserError(
                f"{path}, line {number}: id {source_id[:80]!r}, split {name[:80]!r}; expected an "
                f"id and one of {', '.join(SPLITS)}"
            )
        if source_id in splits:
            raise UserError(f"{path}, line {number}: id {source_id!r} is repeated")
        splits[source_id] = split
    if not splits:
        raise UserError(f"the split file {path} has no lines below its header; add id,split lines")
    return splits, {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
