"""The contents of a packed data set as tables on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mmsa.data.manifest import MODALITIES, Manifest, SplitInfo
from shards.label_rules import shown_rule
from shards.reports.dropped import drop_warnings

_SHOWN_CLASSES = 5  # in a sentence
_SHORTEST_COLUMN = 20  # characters of the names of classes in a line
_MOST_ROWS = 40  # of classes in a table


def print_summary(
    manifest: Manifest, *, directory: Path | None = None, console: Console | None = None
) -> None:
    """Print read, kept and dropped by reason, then samples per split and class, to stdout.

    Warnings and the facts that identify the set follow; the manifest has the settings and the
    versions of libraries. `directory` has the rejected samples, for examples.
    """
    console = console or Console(highlight=False)
    # Text, here and below: in a str, rich would take the brackets of a name for markup.
    title = Text(f"samples of {manifest.dataset}", no_wrap=True, overflow="ignore")
    console.print(Group(title, _counts(manifest), split_table(manifest, width=console.width)))
    protocol = manifest.protocol
    groups = manifest.source.get("groups", {})
    parts = [protocol.name, _as_text(protocol.settings), f"hash {protocol.hash[:12]}"]
    lines = [
        *(f"warning: {warning}" for warning in groups.get("warnings", [])),
        *(
            f"warning: {warning}"
            for warning in manifest.source.get("facts", {}).get("warnings", [])
        ),
        *(f"warning: {warning}" for warning in drop_warnings(manifest, directory)),
        *(f"warning: {warning}" for warning in missing_classes(manifest)),
        *_duplicates(groups.get("duplicates")),
        f"labels    {shown_rule(manifest.label_rule)}",
        "protocol  " + ", ".join(filter(None, parts)),
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


def missing_classes(manifest: Manifest) -> list[str]:
    """A sentence for each split that has samples, but none of some class; and for a single class.

    A score on such a split says nothing of that class, and its macro F1 is another score. A model
    trained without it never predicts it.
    """
    found = []
    if len(manifest.classes) == 1:
        found.append(f"there is one class, {manifest.classes[0]!r}: nothing to tell apart")
    for name, split in manifest.splits.items():
        if not split.num_samples:
            continue
        missing = [label for label in manifest.classes if not split.classes.get(label)]
        if missing:
            shown = ", ".join(repr(label) for label in missing[:_SHOWN_CLASSES])
            more = f" and {len(missing) - _SHOWN_CLASSES:,} more" * (len(missing) > _SHOWN_CLASSES)
            found.append(f"{name} has no sample of {shown}{more}")
    return found


def next_steps(directory: Path, manifest: Manifest) -> str:
    """The next commands: `info`, then training, or evaluation where training is impossible."""
    quoted = shlex.quote(str(directory))
    return f"next: python -m shards info {quoted}\nthen: {use_command(directory, manifest)}"


def use_command(directory: Path | str, manifest: Manifest) -> str:
    """The command that uses the packed set in `directory`: it trains, where train and val are not
    empty and there are two classes, and else evaluates a trained run."""
    filled = [name for name, split in manifest.splits.items() if split.num_samples]
    if filled and not ({"train", "val"} <= set(filled) and len(manifest.classes) > 1):
        quoted = shlex.quote(str(directory))
        return f"python evaluate.py RUN --shards {quoted} --split {filled[-1]}"
    missing = manifest.missing("train", "val") if filled else {}
    head = ""
    for modality, other in zip(MODALITIES, reversed(MODALITIES), strict=True):
        if missing.get(modality) == sum(manifest.splits[n].num_samples for n in ("train", "val")):
            head = f" model.fusion.name={other}_only"
    return (
        "python -m launch run -n 1 launch/runs/full_finetune.yaml "
        f"{shlex.quote(f'data.shards={directory}')}{head} run.dir=runs/first"
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
            name, *(_short(value) for value in one["quantiles"].values()), _short(one["mean"])
        )
    console.print(table)


def _short(value: float) -> str:
    """Three digits, or all of a whole part that is longer."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


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
    for modality, number in manifest.missing().items():
        table.add_row(f"without {modality}", f"{number:,}")
    for reason, number in source.get("dropped", {}).items():
        table.add_row(Text(f"dropped: {reason}"), f"{number:,}")
    return table


def split_table(manifest: Manifest, *, width: int) -> Table:
    """Samples by split and class, in at most `width` columns where that is possible.

    A row for each split, and where that is too wide, a row for each class.
    """
    table = _rows_of_splits(manifest)
    options = Console(width=10**6).options  # measures without a limit
    if Measurement.get(Console(width=10**6), options, table).maximum <= width:
        return table
    narrow = _rows_of_classes(manifest, longest_name=_SHORTEST_COLUMN)
    spare = width - Measurement.get(Console(width=10**6), options, narrow).maximum
    return _rows_of_classes(manifest, longest_name=_SHORTEST_COLUMN + max(0, spare))


def _rows_of_splits(manifest: Manifest) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("split")
    for name in (*manifest.classes, "all", "shards", "MB"):
        table.add_column(Text(name), justify="right")
    for name, split in manifest.splits.items():
        row = [split.classes.get(label, 0) for label in manifest.classes]
        row += [split.num_samples, len(split.shards)]
        table.add_row(Text(name), *(f"{number:,}" for number in row), _megabytes(split))
    table.add_section()
    numbers = [_total(manifest, label) for label in manifest.classes]
    table.add_row("all", *(f"{number:,}" for number in [*numbers, sum(numbers)]))
    return table


def _rows_of_classes(manifest: Manifest, *, longest_name: int) -> Table:
    splits = manifest.splits
    table = Table(box=box.SIMPLE)
    # Folded, not cut: names may differ in their ends alone.
    table.add_column("class", overflow="fold", max_width=longest_name)
    for name in (*splits, "all"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    largest = sorted(manifest.classes, key=lambda label: -_total(manifest, label))[:_MOST_ROWS]
    for label in manifest.classes:
        if label in largest:
            row = [split.classes.get(label, 0) for split in splits.values()]
            table.add_row(Text(label), *(f"{number:,}" for number in [*row, sum(row)]))
    others = set(manifest.classes) - set(largest)
    if others:
        row = [sum(s.classes.get(label, 0) for label in others) for s in splits.values()]
        name = f"{len(others):,} smaller classes"
        table.add_row(name, *(f"{number:,}" for number in [*row, sum(row)]))
    table.add_section()
    sizes = [split.num_samples for split in splits.values()]
    table.add_row("all", *(f"{number:,}" for number in [*sizes, sum(sizes)]))
    table.add_row("shards", *(f"{len(split.shards):,}" for split in splits.values()))
    table.add_row("MB", *(_megabytes(split) for split in splits.values()))
    return table


def _total(manifest: Manifest, label: str) -> int:
    return sum(split.classes.get(label, 0) for split in manifest.splits.values())


def _megabytes(split: SplitInfo) -> str:
    return f"{sum(shard.tar_bytes for shard in split.shards) / 1e6:.1f}"
