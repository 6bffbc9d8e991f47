"""Settings of sources: each field is a command-line option that the source takes.

`SourceSettings` is what every source takes. The classes after it add options that several sources
share; a source's own `Settings` derives from one of them.
"""

from __future__ import annotations

import codecs

from pydantic import BaseModel, ConfigDict, field_validator

from shards.example import Reason, Reject
from shards.label_rules import RULES


class SourceSettings(BaseModel):
    """Base of a source's settings. `normalize` is for `clean_text`, which every text goes through.

    Validators' messages follow "--option value" in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalize: tuple[str, ...] = ()

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
        if name is not None and not _is_text_encoding(name):
            raise ValueError("is not a known encoding; for example utf-8, gb18030")
        return name


class LabelRuleSettings(EncodingSettings):
    """Of sources with a label for the text and one for the image."""

    labels: str = "fused"

    @field_validator("labels")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError(f"is not a label rule; known: {', '.join(RULES)}")
        return rule


class ClassesSettings(EncodingSettings):
    """Of sources that take their classes from the data, or in this order where they are given."""

    classes: tuple[str, ...] | None = None

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("names a class twice")
        if names is not None and (not names or any(not name.strip() for name in names)):
            raise ValueError("names an empty class; give names, as in negative,positive")
        return names


def clean_text(text: str, settings: SourceSettings, *, detail: str) -> str:
    """The packed form of a text; raises `Reject` with `detail` where nothing is left of it."""
    from mmsa.data.decoding.packed_form import BadText, text_as_packed

    try:
        return text_as_packed(text, settings.normalize)
    except BadText:
        raise Reject(Reason.EMPTY_TEXT, detail) from None


def _is_text_encoding(name: str) -> bool:
    try:
        "".encode(codecs.lookup(name).name)
    except (LookupError, ValueError, TypeError):
        return False
    return True
