"""MVSA-Single as distributed (Niu et al., MMM 2016): one annotator. `mvsa.py` has the layout."""

from __future__ import annotations

from pathlib import Path

from shards.example import RawData
from shards.sources.mvsa import Layout, open_layout
from shards.sources.options import DEFAULT, SourceOptions

NAME = "mvsa-single"


def open_raw(raw: Path, options: SourceOptions = DEFAULT) -> RawData:
    """The data set at `raw`; see `open_layout`."""
    return open_layout(Layout(NAME, "MVSA-Single", annotators=1), raw, options)
