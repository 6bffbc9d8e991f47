"""The columns of a table: which one is the text, the image, the label, the id, the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsa.data.manifest import MODALITIES, Modality
from mmsa.raw_files.columns import (
    USUAL_IMAGE,
    USUAL_LABEL,
    USUAL_TEXT,
    find_column,
    has_column,
    no_input_columns,
)
from mmsa.raw_files.rows import Table
from shards.sources.settings import KeepMissingSettings


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None where the table has none."""

    text: str | None  # None: no row has a text
    image: str | None
    label: str
    id: str | None
    split: str | None


class TableSettings(KeepMissingSettings):
    """Of a table; a column that is None is found by its usual names."""

    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    split_column: str | None = None


def columns_of(table: Table, settings: TableSettings) -> Columns:
    """The columns of `table`: as named, else by their usual names.

    Raises `UserError` where one is missing or ambiguous. Text or image may have none where rows
    without it are kept, but not both.
    """

    def find(what: str, given: str | None, usual: Sequence[str]) -> str:
        keep = f". Rows without one: --keep-missing {what}" * (what in MODALITIES)
        return find_column(table, given, usual, what=what, otherwise=keep)

    def find_if_any(name: str, given: str | None) -> str | None:
        named = [column.strip().casefold() for column in table.columns].count(name)
        return find(name, given, (name,)) if given is not None or named == 1 else None

    def find_or_none(modality: Modality, given: str | None, usual: Sequence[str]) -> str | None:
        """As `find`; None where the table has no such column and its rows may lack the modality."""
        named = has_column(table.columns, usual)
        if modality in settings.keep_missing and given is None and not named:
            return None
        return find(modality, given, usual)

    text = find_or_none("text", settings.text_column, USUAL_TEXT)
    image = find_or_none("image", settings.image_column, USUAL_IMAGE)
    if text is None and image is None:
        raise no_input_columns(table.columns)
    return Columns(
        text,
        image,
        find("label", settings.label_column, USUAL_LABEL),
        find_if_any("id", settings.id_column),
        find_if_any("split", settings.split_column),
    )
