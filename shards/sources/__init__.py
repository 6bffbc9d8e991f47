"""One reader per raw format, by the name that `python -m shards pack NAME` takes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

from mmsa.errors import UserError, one_or_many
from shards.example import RawData
from shards.sources.options import DEFAULT, SourceOptions

__all__ = ["SOURCES", "Source", "SourceOptions", "get_source"]


@dataclass(frozen=True)
class Source:
    """A raw format: `help` is one line for the command line, `module` its reader's file."""

    name: str
    module: str
    help: str

    def open_raw(self, raw: Path, options: SourceOptions = DEFAULT) -> RawData:
        """Check the layout of `raw` at once and return what is to be read.

        Raises `UserError` for another layout and for options that this source does not take.
        What was done to the texts stands in the facts, and so in the manifest.
        """
        problems = options.problems()
        if problems:
            raise UserError(one_or_many(problems, where="reading"))
        reader = importlib.import_module(f"shards.sources.{self.module}")  # brings Pillow
        data: RawData = reader.open_raw(raw, options)
        own = data.facts
        return replace(data, facts=lambda: {"normalize": list(options.normalize), **own()})


_SOURCES = (
    Source("mvsa-single", "mvsa_single", "labelResultAll.txt, data/ID.txt, data/ID.jpg"),
    Source("mvsa-multiple", "mvsa_multiple", "the same with three annotators a line"),
    Source("mvsa-enriched", "mvsa_enriched", "LabeledText.xlsx or .csv, Images/CLASS/ID.jpg"),
    Source("table", "table", "a CSV, TSV, JSONL, Parquet or XLSX file of texts, paths, labels"),
    Source("folder", "folder", "CLASS/NAME.jpg with CLASS/NAME.txt"),
    Source("synthetic", "synthetic", "made up before by python -m shards synthetic RAW"),
)
SOURCES: dict[str, Source] = {source.name: source for source in _SOURCES}


def get_source(name: str) -> Source:
    """The source called `name`; `UserError` with the known names where there is none."""
    if name not in SOURCES:
        raise UserError(f"there is no source '{name}'; known: {', '.join(SOURCES)}")
    return SOURCES[name]
