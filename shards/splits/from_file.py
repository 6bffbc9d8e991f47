"""A split that a user wrote down: a CSV or TSV file with the columns `id` and `split`."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from shards.splits.by_hash import SPLITS

_OTHER_NAMES = {"valid": "val", "validation": "val", "dev": "val", "training": "train"}


def read_split_file(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """(id -> split, what the manifest says of the file): its name and sha256.

    The first line names the columns; `id` and `split` are needed, in any case and order, others
    are passed over. Raises `UserError` where the file does not hold that, or names an id twice.
    """
    path = Path(name)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"the split file {path} cannot be read ({error.strerror}); --protocol file:PATH needs "
            "a CSV file with the columns id and split"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the split file {path} is not UTF-8; save it as UTF-8") from None
    first_line = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter="\t" if "\t" in first_line else ",")
    header = [column.strip().lower() for column in next(reader, [])]
    if "id" not in header or "split" not in header:
        raise UserError(
            f"the split file {path} begins with the line {first_line.strip()[:80]!r}; expected "
            "names of columns, 'id' and 'split' among them"
        )
    id_column, split_column = header.index("id"), header.index("split")
    splits: dict[str, str] = {}
    for number, row in enumerate(reader, start=2):
        if not any(cell.strip() for cell in row):
            continue
        cells = [cell.strip() for cell in row] + [""] * len(header)
        source_id, said = cells[id_column], cells[split_column].lower()
        split = _OTHER_NAMES.get(said, said)
        if not source_id or split not in SPLITS:
            raise UserError(
                f"{path}, line {number}: id {source_id[:80]!r}, split {said[:80]!r}; expected an "
                f"id and one of {', '.join(SPLITS)}"
            )
        if source_id in splits:
            raise UserError(f"{path}, line {number}: id {source_id!r} stands there twice")
        splits[source_id] = split
    if not splits:
        raise UserError(f"the split file {path} has no lines below its header; add id,split lines")
    return splits, {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
