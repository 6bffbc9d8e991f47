"""Settings of sources: each field is a command-line option that the source takes.

`SourceSettings` is what every source takes. The classes after it add options that several sources
share; a source's own `Settings` derives from one of them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.data.manifest import MODALITIES, Modality
from mmsa.raw_files.text_files import is_text_encoding
from shards.class_names import Similar
from shards.example import Reason, Reject, read_file
from shards.label_rules import RULES
from shards.sources.dataset_name import problem_of

_MOST_BYTES_OF_CHARACTER = 8  # in any encoding, UTF-7 too


class SourceSettings(BaseModel):
    """Base of a source's settings: both are for `clean_text`, which every text goes through.

    Validators' messages follow "--option value" in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalize: tuple[str, ...] = ()
    max_characters: int = MAX_CHARACTERS

    @field_validator("max_characters")
    @classmethod
    def _at_least_one(cls, number: int) -> int:
        if number < 1:
            raise ValueError("must be at least 1")
        return number

    @field_validator("normalize")
    @classmethod
    def _known_normalizations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from mmsa.data.decoding.packed_form import NORMALIZATIONS  # takes time to import

        unknown = [name for name in names if name not in NORMALIZATIONS]
        if unknown:
            raise ValueError(f"has no '{unknown[0]}'; known: {', '.join(NORMALIZATIONS)}")
        return names


class EncodingSettings(SourceSettings):
    """Of sources whose texts are in an encoding; None is the source's own."""

    encoding: str | None = None

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        if name is not None and not is_text_encoding(name):
            raise ValueError("is not a known encoding; for example utf-8, gb18030")
        return name


class MayKeepMissing(EncodingSettings):
    """Of sources that can keep samples without a text, an image, or either of the two."""

    keep_missing: tuple[Modality, ...] = ()

    @field_validator("keep_missing", mode="before")
    @classmethod
    def _known_modalities(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in MODALITIES]
        if unknown or not names:
            raise ValueError("must be text, image, or text,image")
        return names


class LabelRuleSettings(MayKeepMissing):
    """Of sources with a label for the text and one for the image."""

    labels: str = "fused"

    @field_validator("labels")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError(f"is not a label rule; known: {', '.join(RULES)}")
        return rule


class ClassesSettings(EncodingSettings):
    """Of sources that take their classes from the data, or in this order where they are given.

    `similar_classes` says what becomes of labels that differ only in case, spaces or number format;
    None refuses them. `dataset` names the set; None takes the name of the file or folder.
    """

    classes: tuple[str, ...] | None = None
    similar_classes: Similar | None = None
    dataset: str | None = None

    @field_validator("dataset")
    @classmethod
    def _usable_name(cls, name: str | None) -> str | None:
        problem = None if name is None else problem_of(name)
        if problem is not None:
            raise ValueError(problem)
        return name

    @field_validator("similar_classes", mode="before")
    @classmethod
    def _merge_or_keep(cls, what: str | None) -> str | None:
        if what not in (None, "merge", "keep"):
            raise ValueError("must be merge or keep")
        return what

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("names a class twice")
        if names is not None and (not names or any(not name.strip() for name in names)):
            raise ValueError("names an empty class; give names, as in negative,positive")
        return names


class KeepMissingSettings(ClassesSettings, MayKeepMissing):
    """Of sources with classes of their own that can keep samples without a text or an image."""


def text_or_none(text: str, settings: MayKeepMissing, *, detail: str) -> str:
    """As `clean_text`; "" for an empty text where `settings` keep samples without one."""
    try:
        return clean_text(text, settings, detail=detail)
    except Reject as reject:
        if reject.reason is Reason.EMPTY_TEXT and "text" in settings.keep_missing:
            return ""
        raise


def clean_text(text: str, settings: SourceSettings, *, detail: str) -> str:
    """The packed form of a text. Raises `Reject` where it cannot be used; `detail` says where it
    was found, and is all that is said of an empty one."""
    from mmsa.data.decoding.packed_form import BadText, text_as_packed

    try:
        return text_as_packed(text, settings.normalize, max_characters=settings.max_characters)
    except BadText as error:
        reasons = {"too long": Reason.LARGE_TEXT, "undecoded": Reason.OTHER_ENCODING}
        if error.kind in reasons:
            raise Reject(reasons[error.kind], f"{detail}: {error}") from None
        raise Reject(Reason.EMPTY_TEXT, detail) from None


def text_file(path: Path, settings: SourceSettings) -> bytes:
    """The bytes of a text file. Raises `Reject` where there is none, where it cannot be read, and
    unread where it cannot have as few characters as `settings` allow."""
    return read_file(
        path,
        missing=Reason.NO_TEXT,
        unreadable=Reason.UNREADABLE_TEXT,
        most_bytes=_MOST_BYTES_OF_CHARACTER * settings.max_characters,
        too_large=Reason.LARGE_TEXT,
    )
