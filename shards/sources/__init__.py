"""One reader per raw format, by the name that `python -m shards pack NAME` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from shards.example import RawData
from shards.label_rules import FUSION_RULE
from shards.sources import mvsa_single


@dataclass(frozen=True)
class Source:
    """`open(raw)` checks the layout at once (`UserError`) and returns what is to be read."""

    name: str
    label_rule: str
    open: Callable[[Path], RawData]


SOURCES: dict[str, Source] = {
    mvsa_single.NAME: Source(mvsa_single.NAME, FUSION_RULE, mvsa_single.open_raw),
}


def get_source(name: str) -> Source:
    """The source called `name`; `UserError` with the known names where there is none."""
    if name not in SOURCES:
        raise UserError(f"there is no source '{name}'; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
