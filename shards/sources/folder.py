"""A folder for each class, as torchvision's ImageFolder has it, with a text beside each picture.

    RAW/CLASS/NAME.jpg, RAW/CLASS/NAME.txt     also deeper: RAW/CLASS/SUB/NAME.jpg

Any picture type; texts in UTF-8, with or without its mark. The id is the path below RAW without
the suffix. What is counted as read is every name that has a picture or a text. Hidden files and
those of other types are counted in the manifest's facts and passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsa.errors import UserError
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part, read_file
from shards.label_rules import GIVEN
from shards.sources.options import DEFAULT, SourceOptions, clean_text

NAME = "folder"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp")
_TEXT_SUFFIX = ".txt"


@dataclass
class _Files:
    """The files of one id."""

    pictures: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)


def open_raw(raw: Path, options: SourceOptions = DEFAULT) -> RawData:
    """List the folder `raw`.

    Raises `UserError` where it is no folder or has no folder with a picture or text. Items are
    sorted by id. `options.classes` gives the order of the classes; folders beside them are
    rejected as unknown labels.
    """
    options.refuse_rule(NAME)
    for option in ("text_column", "image_column", "label_column", "id_column"):
        if getattr(options, option) is not None:
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} does not apply to the source {NAME}; leave it out")
    files, others = _walk(raw)
    found = sorted({source_id.split("/")[0] for source_id in files if "/" in source_id})
    if not found:
        raise UserError(
            f"{raw} has no class folders with pictures; expected {raw}/CLASS/NAME.jpg with "
            f"{raw}/CLASS/NAME.txt"
        )
    classes = options.classes or tuple(found)
    return RawData(
        total=len(files),
        items=_items(files, classes, options),
        classes=classes,
        dataset=NAME,
        label_rule=GIVEN,
        facts=lambda: {"other_files": others},
    )


def _walk(raw: Path) -> tuple[dict[str, _Files], int]:
    """The files by id, ids sorted, and how many other files there are."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror})")

    files: dict[str, _Files] = {}
    others = 0
    walked: set[str] = set()
    for folder, inner, names in os.walk(raw, onerror=refuse, followlinks=True):
        inner[:] = [name for name in sorted(inner) if _first_time(Path(folder, name), walked)]
        for name in names:
            stem, suffix = os.path.splitext(name)
            path = Path(folder, name)
            is_text = suffix.lower() == _TEXT_SUFFIX
            if name.startswith(".") or not (is_text or suffix.lower() in _IMAGE_SUFFIXES):
                others += 1
                continue
            # File names need not be valid Unicode; ids must be.
            relative = os.fsencode(Path(folder, stem).relative_to(raw).as_posix())
            source_id = relative.decode("utf-8", "backslashreplace")
            entry = files.setdefault(source_id, _Files())
            (entry.texts if is_text else entry.pictures).append(path)
    return dict(sorted(files.items())), others


def _first_time(folder: Path, walked: set[str]) -> bool:
    """Whether `folder` is met for the first time: links may lead round in a circle."""
    real = os.path.realpath(folder)
    first = real not in walked
    walked.add(real)
    return first


def _items(
    files: dict[str, _Files], classes: tuple[str, ...], options: SourceOptions
) -> Iterator[Example | Rejected]:
    for source_id, entry in files.items():
        try:
            yield _example(source_id, entry, classes, options)
        except Reject as reject:
            yield Rejected(source_id, reject.reason, reject.detail)


def _example(
    source_id: str, entry: _Files, classes: tuple[str, ...], options: SourceOptions
) -> Example:
    label, slash, _ = source_id.partition("/")
    if not slash:
        raise Reject(Reason.NO_CLASS_FOLDER, "it lies beside the class folders")
    if label not in classes:
        raise Reject(Reason.UNKNOWN_LABEL, f"{label!r}; expected {', '.join(classes[:20])}")
    for kind, paths, missing in (
        ("pictures", entry.pictures, Reason.NO_IMAGE),
        ("texts", entry.texts, Reason.NO_TEXT),
    ):
        if not paths:
            raise Reject(missing, f"no such file beside {_names([*entry.pictures, *entry.texts])}")
        if len(paths) > 1:
            raise Reject(Reason.NAME_REPEATED, f"{len(paths)} {kind}: {_names(paths)}")
    return Example(
        key=f"{NAME}-{key_part(source_id)}",
        source_id=source_id,
        dataset=NAME,
        text=_read_text(entry.texts[0], options),
        image_path=entry.pictures[0],
        label=label,
        text_label=None,
        image_label=None,
    )


def _names(paths: list[Path]) -> str:
    names = sorted(path.name for path in paths)
    return os.fsencode(", ".join(names)).decode("utf-8", "backslashreplace")


def _read_text(path: Path, options: SourceOptions) -> str:
    content = read_file(path, missing=Reason.NO_TEXT, unreadable=Reason.UNREADABLE_TEXT)
    encoding = options.encoding or "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        detail = f"{_names([path])} is not {encoding}: {error.reason}"
        raise Reject(Reason.OTHER_ENCODING, detail) from None
    return clean_text(text, options, detail=f"{_names([path])} holds {len(content)} bytes")
