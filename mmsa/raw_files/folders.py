"""A folder of images with a text next to each: which files belong together.

Hidden files, files in hidden folders and files of other types are skipped and counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mmsa.errors import UserError
from mmsa.raw_files.file_names import is_image_name, is_text_name, same_names, shown_stem


@dataclass
class Files:
    """The files of one id."""

    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)


def files_by_id(raw: Path) -> tuple[dict[str, Files], int]:
    """The files by id, ids sorted, and how many other files there are."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror})")

    files: dict[str, Files] = {}
    others = 0
    # What is walked for the number of its files alone is not therefore known to have been read.
    walked, counted = {os.path.realpath(raw)}, {os.path.realpath(raw)}
    for folder, inner, names in os.walk(raw, onerror=refuse, followlinks=True):
        inner[:] = [
            name
            for name in sorted(inner)
            if _first_time(path := Path(folder, name), counted if _hidden(path, raw) else walked)
        ]
        for name in names:
            path = Path(folder, name)
            is_text = is_text_name(name)
            if _hidden(path, raw) or not (is_text or is_image_name(name)):
                others += 1
                continue
            source_id = shown_stem(path.relative_to(raw).as_posix())
            entry = files.setdefault(source_id, Files())
            (entry.texts if is_text else entry.images).append(path)
    _join_same_names(files)
    return dict(sorted(files.items())), others


def _join_same_names(files: dict[str, Files]) -> None:
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
