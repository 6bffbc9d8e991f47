"""What a source hands to packing: an `Example`, or a `Rejected` with its reason."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why something that was read is not packed. The words are those of `rejected.jsonl`."""

    LABEL_LINE = "label line does not parse"
    BAD_ID = "id does not parse"
    UNKNOWN_LABEL = "unknown label"
    LABEL_REPEATED = "label line repeated"
    LABELS_DIFFER = "id twice with different labels"
    LABELS_CONFLICT = "labels conflict"
    NO_LABEL_LINE = "no label line"
    NO_TEXT = "missing text"
    UNREADABLE_TEXT = "unreadable text"
    TEXT_ENCODING = "text is not GB18030"
    EMPTY_TEXT = "empty text"
    NO_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"


@dataclass(frozen=True, slots=True)
class Example:
    """One raw pair that its source found whole; its picture is not decoded yet.

    `label` is the fused class name; `text_label` and `image_label` are the labels of the parts.
    """

    key: str
    source_id: str
    dataset: str
    text: str
    image_path: Path
    label: str
    text_label: str
    image_label: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One line of `rejected.jsonl`. `detail` says what was found, without paths of this machine."""

    source_id: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class RawData:
    """An opened raw data set: `items` yields `total` examples and rejected ones, in a fixed order.

    Texts are read while `items` is walked, so that memory stays bounded.
    """

    total: int
    items: Iterable[Example | Rejected]


class Reject(Exception):
    """Raised where one example turns out unusable; becomes a `Rejected`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def read_file(path: Path, *, missing: Reason, unreadable: Reason) -> bytes:
    """The bytes of a regular file. Raises `Reject` with one of the two reasons otherwise.

    Anything but a regular file counts as unreadable: opening a named pipe would wait for ever.
    """
    shown = f"{path.parent.name}/{path.name}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Reject(unreadable, f"{shown} is no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise Reject(missing, f"{shown} does not exist") from None
    except OSError as error:
        raise Reject(unreadable, f"{shown}: {error.strerror or type(error).__name__}") from None
