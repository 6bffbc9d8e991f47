"""A column of splits in the user's data: when it is used, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsa.errors import UserError
from shards.example import EncodedSample, RawData
from shards.splits.by_hash import SPLITS

COLUMN = "column"  # the protocol
_DEFAULT = "clean"
_SHOWN = 5


def protocol_for(wanted: str | None, data: RawData) -> str:
    """The protocol of a packing: the one that is `wanted`, else the data's own split, else clean.

    Raises `UserError` where the own split is to be used and there is none, or it has a value that
    names no split.
    """
    own = data.own_split
    if wanted not in (None, COLUMN):
        return str(wanted)
    if own is None:
        if wanted is None:
            return _DEFAULT
        raise UserError(
            "--protocol column needs a column of splits, and the data has none called split; name "
            "it with --split-column, or use another protocol"
        )
    if own.unknown or not own.counts:
        found = f"names {_shown(own.unknown)}" if own.unknown else "is empty"
        raise UserError(
            f"the column '{own.column}' {found}; expected {', '.join(SPLITS)} or their usual "
            f"spellings. Correct it, or leave it unused with --protocol {_DEFAULT}"
        )
    return COLUMN


def notes(protocol: str | None, data: RawData) -> tuple[str, ...]:
    """What to tell where the data has its own split and `protocol` is another one."""
    own = data.own_split
    if own is None or protocol == COLUMN:
        return ()
    found = {**own.counts, **own.unknown}
    return (
        f"the column '{own.column}' ({_shown(found)}) is not used, because of --protocol "
        f"{protocol}; --protocol {COLUMN} uses it",
    )


def _shown(counts: Mapping[str, int]) -> str:
    shown = [f"{value[:40]!r} ({number:,})" for value, number in list(counts.items())[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(counts) > _SHOWN else "")


def by_column(samples: Sequence[EncodedSample]) -> dict[str, str]:
    """Key -> split, of the samples whose row names one. Raises `UserError` where none does."""
    split_of = {s.key: s.example.split for s in samples if s.example.split}
    if not split_of:
        raise UserError(
            f"none of the {len(samples)} usable samples names a split in its column. Use another "
            "protocol"
        )
    return split_of
