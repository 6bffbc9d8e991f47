"""The made-up set that `python -m shards synthetic` writes, under its own name.

It has MVSA-Single's layout, so the source mvsa-single reads it too. Read by this source, its keys
and its manifest say that it is made up.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmsa.errors import UserError
from shards.example import RawData
from shards.sources.mvsa import Layout, SingleSettings, read_layout
from shards.sources.source import Source, register_source


@register_source
class Synthetic(Source):
    """The made-up set."""

    name = "synthetic"
    help = "written by python -m shards synthetic RAW"
    Settings = SingleSettings

    def read(self, raw: Path, settings: SingleSettings) -> RawData:
        if not os.path.isdir(raw):
            raise UserError(
                f"{raw} is not a folder; make a set first: "
                f"python -m shards synthetic {raw} --samples 600"
            )
        return read_layout(Layout(self.name, "MVSA-Single", annotators=1), raw, settings)
