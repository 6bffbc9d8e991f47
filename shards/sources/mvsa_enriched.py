"""The enriched MVSA set (Mohammed and Aleqabie, IICCIT 2022): a sheet, and images by class.

    RAW/LabeledText.xlsx (or .csv)     File Name|ID, Caption|Tweet|Text, LABEL|Sentiment
    RAW/Images/CLASS/ID.jpg            or RAW/Images/Images/CLASS/ID.jpg; names in any case

Its labels differ from MVSA's, so it is a data set of its own. The samples read are every row that
is not blank, and every id that has an image and no row. `keep_missing` keeps rows without an image
or without a text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.labels import LABEL_NAMES
from mmsa.raw_files.columns import find_column
from mmsa.raw_files.file_names import is_image_name, same_names, shown_stem
from mmsa.raw_files.rows import cell_text, open_table, undecoded
from shards.example import Example, RawData, Reason, Reject, Rejected, key_part
from shards.label_rules import GIVEN
from shards.sources.mojibake import is_mojibake, repair_line_ends, undo_mojibake
from shards.sources.repeated_ids import Repetitions
from shards.sources.settings import MayKeepMissing, text_or_none
from shards.sources.source import Source, register_source

NAME = "mvsa-enriched"
_SHEET = "labeledtext"
_SHEET_SUFFIXES = (".xlsx", ".csv")
_FOLDER = "images"

Images = dict[str, list[tuple[str, Path]]]  # id -> (class of its folder, path)


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    source_id: str
    text: str
    label: str
    problem: tuple[Reason, str] | None = None


@register_source
class MvsaEnriched(Source):
    """The enriched set. Items come in the order of the sheet, then the ids without a row."""

    name = NAME
    help = "LabeledText.xlsx or .csv, Images/CLASS/ID.jpg"
    Settings = MayKeepMissing

    def read(self, raw: Path, settings: MayKeepMissing) -> RawData:
        sheet = _sheet(raw)
        rows = _rows(sheet, settings)
        images = _images(raw)
        _take_ids_of_rows(images, {row.source_id for row in rows})
        repetitions = Repetitions()
        for row in rows:
            repetitions.note(row.source_id, row.number, (row.text, row.label))
        without_row = sorted(set(images) - {row.source_id for row in rows})
        reader = _Reader(rows, images, repetitions, without_row, settings)
        return RawData(
            total=len(rows) + len(without_row),
            items=reader.items(sheet.name),
            classes=LABEL_NAMES,
            dataset=NAME,
            label_rule=GIVEN,
            facts=reader.facts,
        )


def _sheet(raw: Path) -> Path:
    found = [name for name in _listed(raw) if Path(name).suffix.lower() in _SHEET_SUFFIXES]
    found = [name for name in found if not name.startswith((".", "~"))]  # Excel's lock: ~$NAME
    named = [name for name in found if Path(name).stem.lower() == _SHEET]
    for candidates in (named, found):
        if len(candidates) == 1:
            return raw / candidates[0]
    what = f"it has {len(found)}: {', '.join(sorted(found)[:5])}" if found else "it has none"
    raise UserError(
        f"{raw} must hold one sheet LabeledText.xlsx or LabeledText.csv next to Images/; {what}"
    )


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be listed ({error.strerror}). Expected the enriched set: "
            f"LabeledText.xlsx or .csv, and Images/CLASS/ID.jpg"
        ) from None


def _rows(sheet: Path, settings: MayKeepMissing) -> list[_Row]:
    table = open_table(sheet, encoding=settings.encoding)
    names = [
        find_column(table, None, usual, what=what, flag="its heading in the sheet")
        for what, usual in (
            ("id", ("File Name", "ID")),
            ("text", ("Caption", "Tweet", "Text")),
            ("label", ("LABEL", "Sentiment")),
        )
    ]
    rows = []
    for row in table.rows():
        if row.problem is not None:
            rows.append(_Row(row.number, "", "", "", (Reason.ROW, row.problem)))
            continue
        source_id, text, label = (cell_text(row.cells.get(name)) for name in names)
        problem = None
        if source_id is None or text is None or label is None:
            problem = (Reason.ROW, "a cell holds neither text nor a number")
        elif undecoded(source_id + text + label):
            problem = (Reason.OTHER_ENCODING, f"not {settings.encoding or 'utf-8'}")
        shown = (source_id or "").encode("utf-8", "backslashreplace").decode("utf-8").strip()
        if shown.lower().endswith(".txt"):
            shown = shown[: -len(".txt")]
        rows.append(_Row(row.number, shown, text or "", label or "", problem))
    return rows


def _images(raw: Path) -> Images:
    """The images under RAW/Images, or RAW/Images/Images, by id."""
    folders = _subfolders(raw, (_FOLDER,))
    folders += [inner for folder in folders for inner in _subfolders(folder, (_FOLDER,))]
    if not folders:
        raise UserError(
            f"{raw} has no folder Images; expected Images/CLASS/ID.jpg next to the sheet"
        )
    images: Images = {}
    for folder in folders:
        for class_folder in _subfolders(folder, LABEL_NAMES):
            for name in _listed(class_folder):
                if is_image_name(name) and not name.startswith("."):
                    entry = (class_folder.name.lower(), class_folder / name)
                    images.setdefault(shown_stem(name), []).append(entry)
    return images


def _take_ids_of_rows(images: Images, ids: set[str]) -> None:
    """Rename each image that no row has to the row's id that looks equal: `é` is one character or
    two."""
    for group in same_names([*(ids - set(images)), *(set(images) - ids)]):
        rows = [name for name in group if name in ids]
        others = [name for name in group if name not in ids]
        if len(rows) == len(others) == 1:
            images[rows[0]] = images.pop(others[0])


def _subfolders(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [
        folder / name
        for name in _listed(folder)
        if name.lower() in names and (folder / name).is_dir()
    ]


class _Reader:
    """Walks the rows once, repairs texts, and counts the repairs."""

    def __init__(
        self,
        rows: list[_Row],
        images: Images,
        repetitions: Repetitions,
        without_row: list[str],
        settings: MayKeepMissing,
    ) -> None:
        self._rows = rows
        self._images = images
        self._repetitions = repetitions
        self._without_row = without_row
        self._settings = settings
        self._mojibake = is_mojibake(row.text for row in rows)
        self._counts: Counter[str] = Counter()

    def facts(self) -> dict[str, object]:
        """Counts of texts: repaired, and beyond ASCII in a damaged file but not repairable."""
        names = ("mojibake_repaired", "mojibake_left", "line_ends_repaired")
        return {name: self._counts[name] for name in names}

    def items(self, sheet_name: str) -> Iterator[Example | Rejected]:
        """One item for each row, then one for each image without a row."""
        for row in self._rows:
            try:
                yield self._example(row)
            except Reject as reject:
                yield reject.of(row.source_id)
        for source_id in self._without_row:
            yield Rejected(source_id, Reason.NO_LABEL_LINE, f"not in {sheet_name}")

    def _example(self, row: _Row) -> Example:
        if row.problem is not None:
            raise Reject(row.problem[0], f"row {row.number}: {row.problem[1]}")
        if not row.source_id:
            raise Reject(Reason.BAD_ID, f"row {row.number} has no id")
        self._repetitions.check(row.source_id, row.number)
        label = row.label.strip().lower()
        if not label:
            raise Reject(Reason.NO_LABEL, f"row {row.number}")
        if label not in LABEL_NAMES:
            detail = f"row {row.number}: {row.label[:80]!r}; expected {', '.join(LABEL_NAMES)}"
            raise Reject(Reason.UNKNOWN_LABEL, detail)
        detail = f"row {row.number}"
        text = text_or_none(self._repaired(row.text), self._settings, detail=detail)
        image_path = self._image(row.source_id, label)
        if not text and image_path is None:
            raise Reject(Reason.NEITHER, detail)
        return Example(
            key=f"{NAME}-{key_part(row.source_id)}",
            source_id=row.source_id,
            dataset=NAME,
            text=text,
            image_path=image_path,
            label=label,
        )

    def _image(self, source_id: str, label: str) -> Path | None:
        """The image in the folder of the row's label; one in another folder contradicts the row.

        None where there is none and the settings keep such rows.
        """
        found = self._images.get(source_id, [])
        if not found and "image" in self._settings.keep_missing:
            return None
        if not found:
            raise Reject(Reason.NO_IMAGE, f"Images/CLASS/{source_id}.jpg does not exist")
        fitting = [path for class_name, path in found if class_name == label]
        if not fitting or len({class_name for class_name, _ in found}) > 1:
            folders = ", ".join(sorted({class_name for class_name, _ in found}))
            raise Reject(Reason.LABELS_DIFFER, f"the sheet says {label}, its folder {folders}")
        if len(fitting) > 1:
            names = ", ".join(sorted(path.name for path in fitting))
            raise Reject(Reason.NAME_REPEATED, f"in {label}: {names}")
        return fitting[0]

    def _repaired(self, text: str) -> str:
        repaired = repair_line_ends(text)
        self._counts["line_ends_repaired"] += repaired != text
        if self._mojibake and not repaired.isascii():
            back = undo_mojibake(repaired)
            self._counts["mojibake_left" if back is None else "mojibake_repaired"] += 1
            return repaired if back is None else back
        return repaired
