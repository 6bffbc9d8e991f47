"""A folder for each class, as in torchvision's ImageFolder, with a text next to each image.

    RAW/CLASS/NAME.jpg, RAW/CLASS/NAME.txt     also deeper: RAW/CLASS/SUB/NAME.jpg

Any image type; texts in UTF-8, with or without a byte order mark. The id is the path below RAW
without the suffix. The samples read are all names that have an image or a text. Hidden files, files
in hidden folders and files of other types are skipped; the manifest's facts count them. A name
without an image or without a text is rejected, unless `keep_missing` keeps it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsa.data.manifest import Modality
from mmsa.errors import UserError
from shards.class_names import ClassNames, class_names, unknown
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.dataset_name import name_from
from shards.sources.encoded_text import decoded
from shards.sources.file_names import is_image_name, is_text_name, same_names, shown_stem
from shards.sources.settings import KeepMissingSettings, text_file, text_or_none
from shards.sources.source import Source, register_source

NAME = "folder"


@dataclass
class _Files:
    """The files of one id."""

    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)


@register_source
class Folder(Source):
    """A folder of class folders, sorted by id.

    `settings.classes` gives the order of the classes; other folders are rejected as unknown labels.
    Raises `UserError` where `raw` is not a folder or has no class folder with an image or text.
    """

    name = NAME
    help = "CLASS/NAME.jpg with CLASS/NAME.txt"
    Settings = KeepMissingSettings

    def read(self, raw: Path, settings: KeepMissingSettings) -> RawData:
        files, others = _walk(raw)
        found = Counter(name.split("/")[0] for name in files if "/" in name)
        if not found:
            raise UserError(
                f"{raw} has no class folders with images; expected {raw}/CLASS/NAME.jpg with "
                f"{raw}/CLASS/NAME.txt"
            )
        similar = settings.similar_classes
        names = class_names(found, settings.classes, similar, where=f"the folder {raw}")
        dataset = settings.dataset or name_from(raw.resolve().name, source=NAME)
        merged = {"merged_labels": names.merged} if similar == "merge" else {}
        return RawData(
            total=len(files),
            items=_items(files, dataset, names, settings),
            classes=names.names,
            dataset=dataset,
            label_rule=GIVEN,
            facts=lambda: {"other_files": others, **merged},
            classes_are="found" if settings.classes is None else "stated",
            labels=found,
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
            path = Path(folder, name)
            is_text = is_text_name(name)
            if _hidden(path, raw) or not (is_text or is_image_name(name)):
                others += 1
                continue
            source_id = shown_stem(path.relative_to(raw).as_posix())
            entry = files.setdefault(source_id, _Files())
            (entry.texts if is_text else entry.images).append(path)
    _join_same_names(files)
    return dict(sorted(files.items())), others


def _join_same_names(files: dict[str, _Files]) -> None:
    """Give an image without text the text without image whose name looks equal, but differs.

    `é` is one character or two, and archives change it; the id is that of the image.
    """
    for group in same_names(files):
        images = [name for name in group if files[name].images and not files[name].texts]
        texts = [name for name in group if files[name].texts and not files[name].images]
        if len(images) == len(texts) == 1:
            files[images[0]].texts += files.pop(texts[0]).texts


def _hidden(path: Path, raw: Path) -> bool:
    """Whether a file or a folder around it below `raw` is hidden, as `.ipynb_checkpoints` is.

    `__MACOSX` is what macOS adds to the archives that it makes.
    """
    parts = path.relative_to(raw).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _first_time(folder: Path, walked: set[str]) -> bool:
    """Whether `folder` is new: symbolic links may form a circle."""
    real = os.path.realpath(folder)
    first = real not in walked
    walked.add(real)
    return first


def _items(
    files: dict[str, _Files], dataset: str, names: ClassNames, settings: KeepMissingSettings
) -> Iterator[Example | Rejected]:
    for source_id, entry in files.items():
        try:
            yield _example(source_id, entry, dataset, names, settings)
        except Reject as reject:
            yield Rejected(source_id, reject.reason, reject.detail)


def _example(
    source_id: str,
    entry: _Files,
    dataset: str,
    names: ClassNames,
    settings: KeepMissingSettings,
) -> Example:
    label, slash, _ = source_id.partition("/")
    if not slash:
        raise Reject(Reason.NO_CLASS_FOLDER, "it lies beside the class folders")
    name = names.class_of(label)
    if name is None:
        raise Reject(Reason.UNKNOWN_LABEL, unknown(label, names.names))
    modalities: tuple[tuple[Modality, str, list[Path], Reason], ...] = (
        ("image", "pictures", entry.images, Reason.NO_IMAGE),
        ("text", "texts", entry.texts, Reason.NO_TEXT),
    )
    for modality, kind, paths, missing in modalities:
        if not paths and modality not in settings.keep_missing:
            raise Reject(missing, f"no such file beside {_names([*entry.images, *entry.texts])}")
        if len(paths) > 1:
            raise Reject(Reason.NAME_REPEATED, f"{len(paths)} {kind}: {_names(paths)}")
    text = _read_text(entry.texts[0], settings) if entry.texts else ""
    if not text and not entry.images:
        raise Reject(Reason.NEITHER, f"{_names(entry.texts)} is empty, and has no image beside it")
    return Example(
        key=f"{dataset}-{key_part(source_id)}",
        source_id=source_id,
        dataset=dataset,
        text=text,
        image_path=entry.images[0] if entry.images else None,
        label=name,
    )


def _names(paths: list[Path]) -> str:
    names = sorted(path.name for path in paths)
    return os.fsencode(", ".join(names)).decode("utf-8", "backslashreplace")


def _read_text(path: Path, settings: KeepMissingSettings) -> str:
    content = text_file(path, settings)
    encoding = settings.encoding or "utf-8"
    try:
        text = decoded(content, encoding)
    except UnicodeDecodeError as error:
        detail = f"{_names([path])} is not {encoding}: {error.reason}"
        raise Reject(Reason.OTHER_ENCODING, detail) from None
    return text_or_none(text, settings, detail=f"{_names([path])} holds {len(content)} bytes")
