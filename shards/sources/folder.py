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
from pathlib import Path

from mmsa.data.manifest import Modality
from mmsa.errors import UserError
from mmsa.raw_files.folders import Files, files_by_id
from mmsa.raw_files.text_files import decoded
from shards.class_names import ClassNames, class_names, unknown
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.dataset_name import name_from
from shards.sources.settings import KeepMissingSettings, text_file, text_or_none
from shards.sources.source import Source, register_source

NAME = "folder"


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
        files, others = files_by_id(raw)
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


def _items(
    files: dict[str, Files], dataset: str, names: ClassNames, settings: KeepMissingSettings
) -> Iterator[Example | Rejected]:
    for source_id, entry in files.items():
        try:
            yield _example(source_id, entry, dataset, names, settings)
        except Reject as reject:
            yield reject.of(source_id)


def _example(
    source_id: str,
    entry: Files,
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
