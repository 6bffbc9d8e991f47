"""The label lines of MVSA: ID, then text label,image label of each annotator, tabs between."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.regular_file import read_regular
from mmsa.labels import LABEL_NAMES
from shards.example import Reason, Rejected
from shards.label_rules import Vote

LABEL_FILE = "labelResultAll.txt"
_HEADER_ID = "id"
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SHOWN = 80  # characters of a bad line that are repeated in its detail

Votes = tuple[Vote, ...]


@dataclass(frozen=True)
class Layout:
    """A data set of this layout: its name in keys, its name in messages, its annotators."""

    dataset: str
    title: str
    annotators: int

    @property
    def line_form(self) -> str:
        """What a label line looks like."""
        return "ID<TAB>" + "<TAB>".join(["text,image"] * self.annotators)


@dataclass(frozen=True)
class Line:
    """A label line: its number from 1, its id, and its votes or why there are none."""

    number: int
    source_id: str
    votes: Votes | None
    rejected: Rejected | None = None


def label_lines(layout: Layout, raw: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each label line; blank lines and the header are skipped."""
    path = raw / LABEL_FILE
    try:
        content = read_regular(path)
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise UserError(_layout_message(layout, raw, what)) from None
    if not os.path.isdir(raw / "data"):
        raise UserError(_layout_message(layout, raw, f"{raw / 'data'} is not a folder"))
    # Only the ASCII part can become a label; other bytes stay visible in the rejected line.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace")
    first = True
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        if first and line.split("\t")[0].strip().lower() == _HEADER_ID:
            first = False
            continue
        first = False
        yield number, line


def _layout_message(layout: Layout, raw: Path, what: str) -> str:
    message = (
        f"{what}. Expected the layout of {layout.title}: {raw}/{LABEL_FILE} with lines "
        f"{layout.line_form}, and {raw}/data/ID.txt with {raw}/data/ID.jpg"
    )
    nested = sorted(raw.glob(f"*/{LABEL_FILE}")) if os.path.isdir(raw) else []
    return f"{message}. Did you mean {nested[0].parent}?" if nested else message


def parse_line(layout: Layout, number: int, line: str) -> Line:
    fields = [field.strip() for field in line.split("\t")]
    while len(fields) > 2 and not fields[-1]:
        fields.pop()  # tabs at the end of a line
    source_id = fields[0][:_SHOWN]
    shown = f"line {number}: {line[:_SHOWN]!r}"

    def rejected(reason: Reason, detail: str) -> Line:
        return Line(number, source_id, None, Rejected(source_id, reason, detail))

    if not _ID.fullmatch(fields[0]):
        return rejected(Reason.BAD_ID, f"{shown}; expected 1 to 64 letters, digits, _ or -")
    pairs = [[name.strip() for name in field.split(",")] for field in fields[1:]]
    if len(pairs) != layout.annotators or any(len(pair) != 2 for pair in pairs):
        hint = _other_layout(layout, len(pairs))
        return rejected(Reason.LABEL_LINE, f"{shown}; expected {layout.line_form}{hint}")
    if any(name not in LABEL_NAMES for pair in pairs for name in pair):
        return rejected(Reason.UNKNOWN_LABEL, f"{shown}; expected {', '.join(LABEL_NAMES)}")
    return Line(number, source_id, tuple((pair[0], pair[1]) for pair in pairs))


def _other_layout(layout: Layout, num_pairs: int) -> str:
    if (layout.annotators, num_pairs) == (1, 3):
        return " (MVSA-Multiple has three pairs: the source mvsa-multiple)"
    if (layout.annotators, num_pairs) == (3, 1):
        return " (MVSA-Single has one pair: the source mvsa-single)"
    return ""
