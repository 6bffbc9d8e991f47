"""A made-up set as `python -m shards synthetic` writes it, under a name of its own.

It lies in MVSA-Single's layout, so the source mvsa-single reads it too. Read by this one, its keys
and its manifest say that it is made up.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmsa.errors import UserError
from shards.example import RawData
from shards.sources.mvsa import Layout, open_layout
from shards.sources.options import DEFAULT, SourceOptions

NAME = "synthetic"


def open_raw(raw: Path, options: SourceOptions = DEFAULT) -> RawData:
    """The made-up set at `raw`. Raises `UserError` where there is none; see `open_layout`."""
    if not os.path.isdir(raw):
        raise UserError(
            f"{raw} is no folder; make a set first: python -m shards synthetic {raw} --samples 600"
        )
    return open_layout(Layout(NAME, "MVSA-Single", annotators=1), raw, options)
