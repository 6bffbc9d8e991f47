"""MVSA-Single as distributed (Niu et al., MMM 2016).

    RAW/labelResultAll.txt    ID<TAB>text label,image label; CRLF; a header line or none
    RAW/data/ID.txt, ID.jpg   the tweet (GB18030) and its picture

What is counted as read is every label line that is not blank, and every id that has files and no
label line. An id may stand twice: where its lines say the same, the first is kept and the others
are counted as repeated; where they differ, nobody knows which is right and all are rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsa.data.canonical import BadText, canonical_text
from mmsa.errors import UserError
from mmsa.labels import LABEL_NAMES
from shards.example import Example, RawData, Reason, Reject, Rejected, read_file
from shards.label_rules import fuse

NAME = "mvsa-single"
LABEL_FILE = "labelResultAll.txt"
_HEADER_ID = "id"
# A key is a file name inside a tar: WebDataset cuts it at the first dot, a slash is a folder, and
# a ustar header has room for 100 bytes.
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SHOWN = 80  # characters of a bad line that are repeated in its detail


@dataclass(frozen=True)
class _Line:
    """A label line: its number from 1, its id, and its two labels or why there are none."""

    number: int
    source_id: str
    labels: tuple[str, str] | None
    rejected: Rejected | None = None


def open_raw(raw: Path) -> RawData:
    """Read the label file of `raw` and list its folder.

    Raises `UserError` where the layout is not MVSA-Single's. Items come in the order of the label
    file, then the ids without a label line, sorted.
    """
    lines = [_parse(number, line) for number, line in _label_lines(raw)]
    labelled = {line.source_id for line in lines}
    unlabelled = sorted(_ids_with_files(raw / "data") - labelled)
    return RawData(len(lines) + len(unlabelled), _items(raw, lines, unlabelled))


def _label_lines(raw: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each label line; blank lines and the header are passed over."""
    path = raw / LABEL_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(_layout_message(raw, f"{path} cannot be read ({error.strerror})")) from None
    if not os.path.isdir(raw / "data"):
        raise UserError(_layout_message(raw, f"{raw / 'data'} is no folder"))
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


def _layout_message(raw: Path, what: str) -> str:
    message = (
        f"{what}. Expected the layout of MVSA-Single: {raw}/{LABEL_FILE} with lines "
        f"ID<TAB>text,image, and {raw}/data/ID.txt with {raw}/data/ID.jpg"
    )
    nested = sorted(raw.glob(f"*/{LABEL_FILE}")) if os.path.isdir(raw) else []
    return f"{message}. Did you mean {nested[0].parent}?" if nested else message


def _parse(number: int, line: str) -> _Line:
    fields = [field.strip() for field in line.split("\t")]
    source_id = fields[0][:_SHOWN]
    shown = f"line {number}: {line[:_SHOWN]!r}"

    def rejected(reason: Reason, detail: str) -> _Line:
        return _Line(number, source_id, None, Rejected(source_id, reason, detail))

    if not _ID.fullmatch(fields[0]):
        return rejected(Reason.BAD_ID, f"{shown}; expected 1 to 64 letters, digits, _ or -")
    names = [name.strip() for name in fields[1].split(",")] if len(fields) == 2 else []
    if len(names) != 2:
        hint = " (MVSA-Multiple has three pairs)" if len(fields) == 4 else ""
        return rejected(Reason.LABEL_LINE, f"{shown}; expected ID<TAB>text,image{hint}")
    for name in names:
        if name not in LABEL_NAMES:
            return rejected(Reason.UNKNOWN_LABEL, f"{shown}; expected {', '.join(LABEL_NAMES)}")
    return _Line(number, source_id, (names[0], names[1]))


def _ids_with_files(folder: Path) -> set[str]:
    try:
        names = [os.path.splitext(name) for name in os.listdir(folder)]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror})") from None
    # File names need not be valid Unicode; what is listed must be.
    return {
        os.fsencode(stem).decode("utf-8", "backslashreplace")
        for stem, suffix in names
        if suffix in (".txt", ".jpg")
    }


def _items(raw: Path, lines: list[_Line], unlabelled: list[str]) -> Iterator[Example | Rejected]:
    labels_of: dict[str, set[tuple[str, str]]] = {}
    for line in lines:
        if line.labels:
            labels_of.setdefault(line.source_id, set()).add(line.labels)
    first_line: dict[str, int] = {}
    for line in lines:
        if line.rejected or not line.labels:
            assert line.rejected, line
            yield line.rejected
            continue
        try:
            _check_repetition(line, labels_of[line.source_id], first_line)
            yield _example(raw, line.source_id, *line.labels)
        except Reject as reject:
            yield Rejected(line.source_id, reject.reason, reject.detail)
    for source_id in unlabelled:
        yield Rejected(source_id, Reason.NO_LABEL_LINE, f"not in {LABEL_FILE}")


def _check_repetition(
    line: _Line, labels: set[tuple[str, str]], first_line: dict[str, int]
) -> None:
    if len(labels) > 1:
        said = "; ".join(",".join(pair) for pair in sorted(labels))
        raise Reject(Reason.LABELS_DIFFER, f"line {line.number}; its lines say {said}")
    first = first_line.setdefault(line.source_id, line.number)
    if first != line.number:
        raise Reject(Reason.LABEL_REPEATED, f"line {line.number} says the same as line {first}")


def _example(raw: Path, source_id: str, text_label: str, image_label: str) -> Example:
    label = fuse(text_label, image_label)
    if label is None:
        raise Reject(Reason.LABELS_CONFLICT, f"text {text_label}, image {image_label}")
    return Example(
        key=f"{NAME}-{source_id}",
        source_id=source_id,
        dataset=NAME,
        text=_read_text(raw / "data" / f"{source_id}.txt"),
        image_path=raw / "data" / f"{source_id}.jpg",
        label=label,
        text_label=text_label,
        image_label=image_label,
    )


def _read_text(path: Path) -> str:
    content = read_file(path, missing=Reason.NO_TEXT, unreadable=Reason.UNREADABLE_TEXT)
    try:
        # GB18030 alone, never "UTF-8 first": some tweets are valid in both and mean the former.
        text = content.decode("gb18030")
    except UnicodeDecodeError as error:
        raise Reject(Reason.TEXT_ENCODING, f"data/{path.name}: {error.reason}") from None
    try:
        return canonical_text(text)
    except BadText:
        detail = f"data/{path.name} holds {len(content)} bytes, blanks at most"
        raise Reject(Reason.EMPTY_TEXT, detail) from None
