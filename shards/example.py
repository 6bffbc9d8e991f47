"""The records of packing: `Example` and `Rejected` from a source, and `EncodedSample`.

source -> Example -> EncodedSample (its image in packed form) -> PackedSample (packing/tars.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmsa.foundation.regular_file import NotRegular, open_regular
from mmsa.raw_files.keys import key_part as key_part

if TYPE_CHECKING:  # imports Pillow, which --help must not
    from mmsa.data.decoding.posted_images import BadImage


class Reason(StrEnum):
    """Why a sample that was read is not packed, as `rejected.jsonl` says it."""

    LABEL_LINE = "label line does not parse"
    BAD_ID = "id does not parse"
    UNKNOWN_LABEL = "unknown label"
    LABEL_REPEATED = "label line repeated"
    LABELS_DIFFER = "id twice with different labels"
    LABELS_CONFLICT = "labels conflict"
    LABELS_DISAGREE = "labels of text and image differ"
    NO_MAJORITY = "no majority of annotators"
    NO_LABEL_LINE = "no label line"
    NO_LABEL = "missing label"
    NO_CLASS_FOLDER = "not in a class folder"
    NEITHER = "neither text nor image"
    ROW = "row does not parse"
    ID_REPEATED = "id twice"
    NAME_REPEATED = "several files of one name"
    NO_TEXT = "missing text"
    UNREADABLE_TEXT = "unreadable text"
    TEXT_ENCODING = "text is not GB18030"
    OTHER_ENCODING = "text is not in the stated encoding"
    EMPTY_TEXT = "empty text"
    LARGE_TEXT = "text too long"
    NO_IMAGE = "missing image"
    IMAGE_URL = "image is a web address, not a file"
    UNREADABLE_IMAGE = "unreadable image"
    EMPTY_IMAGE = "empty image file"
    TRUNCATED_IMAGE = "truncated image"
    LARGE_IMAGE = "image too large"
    SAMPLE = "sample of a tar does not fit"


@dataclass(frozen=True, slots=True)
class Example:
    """One usable raw sample from a source; its image is not decoded yet.

    A sample without a text has an empty `text`, one without an image no `image_path`; none lacks
    both. Sources give such samples only where their settings ask for it.

    `key` is unique in the data set: its name, a hyphen, `key_part(source_id)`. `label` is the class
    name; `text_label` and `image_label` are those of the two modalities, where the source has them.
    `votes` holds (text, image) of each annotator where there are several; `soft` is class -> share
    of the annotators. `split` is the user's own, where the data has a column of splits: empty where
    its cell is.
    """

    key: str
    source_id: str
    dataset: str
    text: str
    image_path: Path | None
    label: str
    text_label: str | None = None
    image_label: str | None = None
    votes: tuple[tuple[str, str], ...] | None = None
    soft: Mapping[str, float] | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """An example, and where its image lies in packed form. Sizes in bytes and pixels.

    All are 0, and the hash is empty, where the example has no image.
    """

    example: Example
    chunk: str  # path of the file that holds the JPEG
    offset: int
    length: int
    crc32: int
    width: int
    height: int
    image_hash: str  # hexadecimal; `shards.duplicates.images.image_hash`

    @property
    def key(self) -> str:
        """The key of its example."""
        return self.example.key


@dataclass(frozen=True, slots=True)
class Rejected:
    """One line of `rejected.jsonl`. `detail` says what was found, without absolute paths.

    `no_file` is not in that line: whether the sample names a file that does not exist. File names
    need not be valid Unicode; what UTF-8 cannot encode is written as an escape.
    """

    source_id: str
    reason: Reason
    detail: str
    no_file: bool = field(default=False, repr=False)  # said by `detail`: no part of a fingerprint

    def __post_init__(self) -> None:
        for name in ("source_id", "detail"):
            shown = getattr(self, name).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, name, shown)


@dataclass(frozen=True)
class OwnSplit:
    """The user's column of splits: how often each split is named, and the values that are none."""

    column: str
    counts: Mapping[str, int]
    unknown: Mapping[str, int]


ClassesAre = Literal["fixed", "found", "stated"]


@dataclass(frozen=True)
class RawData:
    """An opened raw data set: `items` yields `total` examples and rejected ones, in a fixed order.

    Texts are read while `items` is iterated, so that memory stays bounded. `classes` is the order
    of the class names. `label_rule` goes into the manifest ("given" where the raw data has one
    label for each pair), and so do the `facts`, which are called for after the last item: counts of
    what was repaired or skipped.

    `classes_are` says where `classes` come from: "fixed" by the format, "found" in the data, or
    "stated" by the user. Of those found, the ones without a usable sample are not packed; stated
    ones need some. `labels` counts the labels found, for messages. `own_split` is set where the
    data has a column of splits.
    """

    total: int
    items: Iterable[Example | Rejected]
    classes: tuple[str, ...]
    dataset: str
    label_rule: str
    facts: Callable[[], dict[str, Any]] = field(default=dict)
    classes_are: ClassesAre = "fixed"
    labels: Mapping[str, int] = field(default_factory=dict)
    own_split: OwnSplit | None = None


class Reject(Exception):
    """Raised where an example is not usable; becomes a `Rejected`."""

    def __init__(self, reason: Reason, detail: str, *, no_file: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.no_file = no_file

    def of(self, source_id: str) -> Rejected:
        """The `Rejected` of the example `source_id`."""
        return Rejected(source_id, self.reason, self.detail, self.no_file)


def image_reason(error: BadImage) -> Reason:
    """The reason for an image that `pack_image` refused."""
    return {
        "empty": Reason.EMPTY_IMAGE,
        "truncated": Reason.TRUNCATED_IMAGE,
        "too large": Reason.LARGE_IMAGE,
    }.get(error.kind, Reason.UNREADABLE_IMAGE)


def read_file(
    path: Path,
    *,
    missing: Reason,
    unreadable: Reason,
    most_bytes: int | None = None,
    too_large: Reason | None = None,
) -> bytes:
    """The bytes of a regular file. Raises `Reject` with one of the reasons otherwise.

    Anything but a regular file counts as unreadable: opening a named pipe would block forever. A
    file of more than `most_bytes` is not read; its reason is then `too_large`.
    """
    shown = f"{path.parent.name}/{path.name}"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if most_bytes is not None and too_large is not None and size > most_bytes:
                raise Reject(too_large, f"{shown} holds {size:,} bytes")
            return file.read()
    except NotRegular as error:
        raise Reject(unreadable, f"{shown}: {error.strerror}") from None
    except FileNotFoundError:
        raise Reject(missing, f"{shown} does not exist", no_file=True) from None
    except OSError as error:
        raise Reject(unreadable, f"{shown}: {error.strerror or type(error).__name__}") from None
    except ValueError:  # a NUL or half a character in the name
        raise Reject(missing, f"{ascii(shown)} is no file name") from None
