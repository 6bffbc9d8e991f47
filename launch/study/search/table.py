"""The state of a search as a table: the best trials and those that run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEST_UP_TO = 10  # complete trials; the page has all


def print_search(found: Mapping[str, Any], verdict: str) -> None:
    """Print the best trials, those under way and why others failed; `found` is a `summary`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=False)
    rows = {row["name"]: row for row in found["trials"]}
    done = [rows[name] for name in found["ranking"]]
    under_way = [row for row in found["trials"] if row["state"] in ("running", "stopped")]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(found["metric"], justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for row in [*done[:_BEST_UP_TO], *under_way]:
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        steps = "" if row["step"] is None else str(row["step"])
        table.add_row(row["name"], row["state"], value, steps, " ".join(row["settings"]))
    console.print(verdict, soft_wrap=True)
    if done or under_way:
        console.print(table)
    for row in found["trials"]:
        if row["state"] == "failed":
            console.print(f"{row['name']}: {row['why']}", soft_wrap=True)
