"""The state of several runs as a table that fits 80 columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]


def print_table(runs: Sequence[Facts], notes: Mapping[str, str], unknown: Sequence[str]) -> None:
    """Print one line per run, then `notes` (run -> what it needs said), then what is not a run.

    `runs` are `status.facts_of`. Runs are named from their common folder on.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    folder = os.path.commonpath([str(Path(run["run"]).parent) for run in runs])
    console = Console(highlight=False, markup=False, soft_wrap=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "val. F1", "time left", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(_name(run, folder), short_state(run), *_numbers(run))
    if folder:
        console.print(f"in {folder}:", soft_wrap=True)
    console.print(table)
    for name, note in notes.items():
        console.print(f"{_name({'run': name}, folder)}: {note}", soft_wrap=True)
    if unknown:
        console.print(f"not runs: {', '.join(unknown)}", soft_wrap=True)


def short_state(run: Facts) -> str:
    """`running`, `done`, ..., or what is known of a run that has not said anything yet."""
    if run["state"] is not None:
        return str(run["state"])
    if "RUNNING" in run["queued"].values():
        return "starting"
    return "queued" if run["queued"] else "not started"


def _name(run: Facts, folder: str) -> str:
    return os.path.relpath(run["run"], folder) if folder else str(run["run"])


def _numbers(run: Facts) -> list[str]:
    """Step, loss, weighted F1 of the last validation, time left, time since the last update."""
    step = f"{run['step']}/{run['num_steps']}" if run["num_steps"] else ""
    f1 = (run["validation"] or {}).get("weighted_f1")
    age, runs = run["seconds_since_word"], run["state"] == "running"
    return [
        step,
        "" if run["loss"] is None else f"{run['loss']:.4f}",
        "" if f1 is None else f"{f1:.4f}",
        clock(run["seconds_left"]) if runs and run["seconds_left"] is not None else "",
        clock(age) if runs and age is not None else "",
    ]


def clock(seconds: int) -> str:
    """As H:MM:SS."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
