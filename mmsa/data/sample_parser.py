"""From the bytes of one sample to its parts, which must agree with its index record."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps

from mmsa.data.index_file import key_hash, missing_bits, missing_in_words
from mmsa.data.index_records import Record
from mmsa.data.members import Content, Fields, object_in, packed_sample, sample_of, tar_members

Parts = tuple[str, Content | None, str | None, bytes]  # key, image, text, unparsed json


class Contradiction(Exception):
    """How a sample contradicts its index record; `key` is the one in the tar."""

    def __init__(self, what: str, key: str) -> None:
        super().__init__(what)
        self.key = key


class SampleParser:
    """Parses the samples of one split. `classes` are those of the manifest; `packed_here` says that
    `shards pack` wrote the tars, and not another program."""

    def __init__(self, fields: Fields, classes: Sequence[str], packed_here: bool) -> None:
        self._fields = fields
        self._classes = classes
        self._packed_here = packed_here
        self._label_marks = [
            f'"label":{dumps(name, ensure_ascii=False)}'.encode() for name in classes
        ]

    def parse(self, record: Record, content: bytes) -> Parts:
        """The parts of the sample in `content`, whose checksum is right.

        Tars that our packing wrote pass these checks; other programs write tars too. Raises
        `Contradiction`, and as `tar_members` and `sample_of` do.
        """
        parts: Parts | None = packed_sample(content) if self._packed_here else None
        if parts is None:
            parts = sample_of(tar_members(memoryview(content)), self._fields)
        self._check(record, *parts)
        return parts

    def _check(
        self, record: Record, key: str, image: Content | None, text: str | None, json: bytes
    ) -> None:
        if key_hash(key) != record.key_hash:
            raise Contradiction(f"its key is '{key}', the index says another", key)
        characters = len(text or "")
        if characters != record.text_length:
            raise Contradiction(
                f"its text has {characters} characters, the index says {record.text_length}", key
            )
        missing = missing_bits(has_text=text is not None, has_image=image is not None)
        if missing != record.missing:
            found, said = map(missing_in_words, (missing, record.missing))
            raise Contradiction(f"it lacks {found}, the index says {said}", key)
        # Tars packed by other programs may keep their labels elsewhere. In ours, searching the
        # bytes for the label is cheaper than parsing them, which then only happens on a mismatch.
        if self._packed_here and self._label_marks[record.label] not in json:
            label, named = object_in(json).get("label"), self._classes[record.label]
            if label is None:
                raise Contradiction("its json names no label", key)
            if label != named and label in self._classes:
                raise Contradiction(f"its json says {label}, the index says {named}", key)
