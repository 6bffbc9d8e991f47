"""A folder of images with a text next to each as an input: NAME.jpg with NAME.txt, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.regular_file import NotRegular, read_regular
from mmsa.prediction.inputs.raw_rows import RawRow, RawRows
from mmsa.prediction.inputs.source import BadRow, Needs
from mmsa.preprocessing import Preprocessing
from mmsa.raw_files.folders import Files, files_by_id
from mmsa.raw_files.keys import key_of
from mmsa.raw_files.text_files import decoded


class FolderRows(RawRows):
    """One row for each name that has an image or a text, sorted by name.

    The names of all files are kept in memory. Raises `UserError` for a folder without any.
    """

    columns = ("id", "image", "text")

    def __init__(
        self,
        path: Path,
        needs: Needs,
        preprocessing: Preprocessing,
        *,
        dataset: str,
        encoding: str | None = None,
    ) -> None:
        self.path, self.needs, self.preprocessing = path, needs, preprocessing
        self._dataset, self._encoding = dataset, encoding or "utf-8"
        self._files, _ = files_by_id(path)
        if not self._files:
            raise UserError(
                f"the folder {path} has no images and no texts; expected NAME.jpg with NAME.txt"
            )

    def __len__(self) -> int:
        return len(self._files)

    def identity(self) -> dict[str, Any]:
        """Path, and the names of the files."""
        from hashlib import sha256

        names = "\n".join(repr((name, files)) for name, files in self._files.items())
        digest = sha256(names.encode("utf-8", "backslashreplace")).hexdigest()
        return {"input": str(self.path.resolve()), "names": digest, "encoding": self._encoding}

    def cells(self) -> Iterator[Mapping[str, Any]]:
        """Name, path of the image below the folder, and the text as it is in its file."""
        for name, files in self._files.items():
            image = files.images[0].relative_to(self.path).as_posix() if files.images else None
            try:
                text = self._text(files)
            except BadRow:
                text = None
            yield {"id": name, "image": image, "text": text}

    def rows(self) -> Iterator[RawRow]:
        """The rows as the model reads them."""
        for name, files in self._files.items():
            key = key_of(self._dataset, name)
            try:
                for kind, paths in (("images", files.images), ("texts", files.texts)):
                    if len(paths) > 1:
                        raise BadRow(f"{len(paths)} {kind} have this name")
                image = files.images[0] if files.images else None
                text = self._packed_text(files)
                self.needs.check(has_text=text is not None, has_image=image is not None)
            except BadRow as error:
                yield RawRow(key, problem=str(error))
            else:
                yield RawRow(key, text, image)

    def _packed_text(self, files: Files) -> str | None:
        """As the model reads it. Of a model that reads none it only decides about the order."""
        try:
            return self.needs.text(self._text(files) or "")
        except BadRow:
            if "text" in self.needs.read:
                raise
            return None

    def _text(self, files: Files) -> str | None:
        if not files.texts:
            return None
        name = files.texts[0].name
        try:
            return decoded(read_regular(files.texts[0]), self._encoding)
        except NotRegular as error:
            raise BadRow(f"text: {name} {error.strerror}") from None
        except OSError as error:
            raise BadRow(f"text: {name} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise BadRow(f"text: {name} is not {self._encoding} ({error.reason})") from None
