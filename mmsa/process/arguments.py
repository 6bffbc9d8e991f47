"""The arguments of `train.py`, without its imports: `--help` need not wait for torch."""

from __future__ import annotations

import argparse

from mmsa.extensions import add_import_option


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of `train.py`: `--config FILE` and any number of `section.key=value`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; see launch/runs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings")
    add_import_option(parser)
    return parser
