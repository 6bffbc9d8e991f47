"""The commands `python -m shards protocols` and `python -m shards leaks OUT`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from mmsa.data.storage.settings import add_cache_option
from mmsa.foundation.command_line import CommandParser
from mmsa.foundation.urls import location_of

# Slow imports are inside the functions that need them, to keep --help fast.


def add_parsers(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add both commands; each sets `run`, a function of the parsed arguments."""
    protocols = commands.add_parser(
        "protocols", help="list the split protocols and their class counts"
    )
    protocols.add_argument("--json", action="store_true", help="print as JSON")
    protocols.set_defaults(run=run_protocols)
    leaks = commands.add_parser(
        "leaks", help="count held-out samples with a duplicate in another split"
    )
    leaks.add_argument("out", metavar="OUT", type=location_of, help="directory or URL of a set")
    add_cache_option(leaks)
    form = leaks.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the counts as JSON")
    form.add_argument("--list", action="store_true", help="print every such sample as a JSON line")
    leaks.set_defaults(run=run_leaks)


def run_protocols(args: argparse.Namespace) -> None:
    """Print every protocol: what it does, its source, and the class counts of fixed lists."""
    from shards.reports.catalogue import catalogue

    entries = catalogue()
    if args.json:
        print(json.dumps([entry.as_json() for entry in entries], indent=1))
        return
    for entry in entries:
        print(f"{entry.name}  (version {entry.version})")
        print(f"    {entry.about}")
        if entry.source:
            print(f"    source: {entry.source}")
        for fixed in entry.lists:
            print(f"    {fixed.dataset}, {fixed.name}, hash {fixed.hash[:12]}")
            print("        " + "; ".join(_counts(*item) for item in fixed.counts.items()))
        print()


def _counts(split: str, counts: dict[str, int]) -> str:
    classes = ", ".join(f"{number:,} {label}" for label, number in counts.items())
    return f"{split} {sum(counts.values()):,} = {classes}"


def run_leaks(args: argparse.Namespace) -> None:
    """Print how many val and test samples of OUT have a duplicate in train (for test, or val)."""
    from shards.reports.leaks import leak_report, list_leaks

    if args.list:
        for leak in list_leaks(args.out):
            print(json.dumps(dataclasses.asdict(leak)))
        return
    report = leak_report(args.out)
    if args.json:
        print(json.dumps(report.as_json(), indent=1))
        return
    protocol = report.manifest.protocol
    print(f"{report.manifest.dataset}, protocol {protocol.name}, hash {protocol.hash[:12]}")
    for split, counts in report.counts.items():
        print(f"{split}: {_sentence(counts)}")
        if counts["any"]:
            by_class = report.by_class[split]
            print("    " + ", ".join(f"{number} {label}" for label, number in by_class.items()))
    if not report.counts:
        print("no samples in val or test: nothing is held out")


def _sentence(counts: dict[str, Any]) -> str:
    where = [f"{counts[other]} in {other}" for other in ("train", "val") if other in counts]
    percent = 100 * counts["any"] / counts["samples"]
    return (
        f"{counts['any']} of {counts['samples']:,} samples ({percent:.1f} %) have a duplicate in "
        f"another split: {', '.join(where)}"
    )
