"""The contents of a packed data set as tables on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mmsa.data.manifest import Manifest
from shards.label_rules import shown_rule


def print_summary(manifest: Manifest, *, console: Console | None = None) -> None:
    """Print read, kept and dropped by reason, then samples per split and class, to stdout.

    Warnings and the facts that identify the set follow; the manifest has the settings and the
    versions of libraries.
    """
    console = console or Console(highlight=False)
    # Text, here and below: in a str, rich would take the brackets of a name for markup.
    title = Text(f"samples of {manifest.dataset}", no_wrap=True, overflow="ignore")
    console.print(Group(title, _counts(manifest), _splits(manifest)))
    protocol = manifest.protocol
    groups = manifest.source.get("groups", {})
    lines = [
        *(f"warning: {warning}" for warning in groups.get("warnings", [])),
        *(
            f"warning: {warning}"
            for warning in manifest.source.get("facts", {}).get("warnings", [])
        ),
        *_duplicates(groups.get("duplicates")),
        f"labels    {shown_rule(manifest.label_rule)}",
        f"protocol  {protocol.name}, {_as_text(protocol.settings)}, hash {protocol.hash[:12]}",
        f"digest    {manifest.digest[:12]}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _duplicates(found: Mapping[str, Any] | None) -> list[str]:
    """A line on the duplicate groups, and one on the largest; the manifest lists more."""
    if not found or not found["groups"]:
        return []
    largest = ", ".join(
        f"{one['keys'][0]} and {one['samples'] - 1:,} more" for one in found["largest"][:3]
    )
    return [
        f"duplicates {found['samples_in_groups']:,} samples in {found['groups']:,} groups; "
        f"groups with conflicting labels: {found['conflicting_groups']:,}",
        f"          largest: {largest}; the manifest lists them under source.groups",
    ]


def next_steps(directory: Path) -> str:
    """The next commands: `info`, then training."""
    quoted = shlex.quote(str(directory))
    return f"next: python -m shards info {quoted}\nthen: {training_command(directory)}"


def training_command(directory: Path) -> str:
    """The command that trains on the packed set in `directory`."""
    return (
        "python -m launch run -n N launch/runs/full_finetune.yaml "
        f"{shlex.quote(f'data.shards={directory}')} run.dir=runs/first"
    )


def print_distributions(facts: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print the duplicates and the quantiles of `shards.reports.info.describe`, to stdout."""
    console = console or Console(highlight=False)
    found = facts["duplicates"]
    console.print(
        f"duplicates {found['samples_in_groups']:,} samples in {found['groups']:,} groups, the "
        f"largest of {found['largest_group']:,}; {found['groups_in_several_splits']:,} groups are "
        "in several splits",
        soft_wrap=True,
    )
    # Narrow enough for 80 columns: figures that were cut off would be lost.
    table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    distributions = facts["distributions"]
    if not distributions:
        return
    first = next(iter(distributions.values()))
    for percent in first["quantiles"]:
        table.add_column(f"{percent} %", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for name, one in distributions.items():
        table.add_row(
            name, *(f"{value:.4g}" for value in one["quantiles"].values()), f"{one['mean']:.4g}"
        )
    console.print(table)


def _as_text(settings: Mapping[str, Any]) -> str:
    """`{"seed": 0, "ratios": {"train": 8, "val": 1}}` as "seed 0, ratios 8:1"."""
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, dict) and all(isinstance(part, int) for part in value.values()):
        return ":".join(map(str, value.values()))
    if isinstance(value, dict):
        return "; ".join(f"{name} {_value(part)}" for name, part in value.items())
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


def _counts(manifest: Manifest) -> Table:
    source = manifest.source
    table = Table(box=box.SIMPLE)
    table.add_column("")
    table.add_column("samples", justify="right")
    table.add_row("read", f"{source.get('read', 0):,}")
    table.add_row("kept", f"{source.get('kept', 0):,}")
    for reason, number in source.get("dropped", {}).items():
        table.add_row(Text(f"dropped: {reason}"), f"{number:,}")
    return table


def _splits(manifest: Manifest) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("split")
    for name in (*manifest.classes, "all", "shards", "MB"):
        table.add_column(Text(name), justify="right")
    for name, split in manifest.splits.items():
        megabytes = sum(shard.tar_bytes for shard in split.shards) / 1e6
        row = [split.classes.get(label, 0) for label in manifest.classes]
        row += [split.num_samples, len(split.shards)]
        table.add_row(Text(name), *(f"{number:,}" for number in row), f"{megabytes:.1f}")
    totals = [
        sum(split.classes.get(label, 0) for split in manifest.splits.values())
        for label in manifest.classes
    ]
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in [*totals, sum(totals)]))
    return table
