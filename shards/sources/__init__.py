"""Sources: one reader per raw format. `SOURCES` has them by the name that `pack` takes."""

# Imported because each registers its sources.
from shards.sources import folder, mvsa, mvsa_enriched, synthetic, table  # noqa: F401
from shards.sources.settings import SourceSettings, clean_text
from shards.sources.source import SOURCES, Source, get_source, register_source

__all__ = ["SOURCES", "Source", "SourceSettings", "clean_text", "get_source", "register_source"]
