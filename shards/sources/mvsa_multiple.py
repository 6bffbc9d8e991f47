"""MVSA-Multiple as distributed (Niu et al., MMM 2016): three annotators.

A label needs a majority of at least two annotators, for text and for picture on their own; then the
label rule decides. By the fusion rule 17,024 of its 19,600 pairs remain (Xu and Mao, CIKM 2017).
Some of its files are empty and a few pictures do not open: they are rejected with their reason.
"""

from __future__ import annotations

from pathlib import Path

from shards.example import RawData
from shards.sources.mvsa import Layout, open_layout
from shards.sources.options import DEFAULT, SourceOptions

NAME = "mvsa-multiple"


def open_raw(raw: Path, options: SourceOptions = DEFAULT) -> RawData:
    """The data set at `raw`; see `open_layout`."""
    return open_layout(Layout(NAME, "MVSA-Multiple", annotators=3), raw, options)
