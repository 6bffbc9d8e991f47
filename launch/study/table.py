"""The state of a study as a table: a line for each variant, a column for each of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.study.question import Study
from launch.study.search.summary import verdict
from launch.study.search.table import print_search
from launch.study.trials import Trial

_COLUMNS_UP_TO = 6  # runs of a variant; more are counted
_SHORT = {"done": "done", "running": "trains", "waiting": "-", "stopped": "stopped"}


def print_study(study: Study, trials: Sequence[Trial], found: Mapping[str, Any]) -> None:
    """Print what is done and what the runs say so far, the best variant first."""
    if study.search is not None:
        print_search(found["search"], verdict(found["search"], is_confirmed=bool(study.variants)))
    if trials:
        _print_variants(study, trials, found)


def _print_variants(study: Study, trials: Sequence[Trial], found: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=False)
    states = {trial.name: trial.state(study.digest_of(trial.variant)) for trial in trials}
    own: dict[str, list[Trial]] = {}
    for trial in trials:
        own.setdefault(trial.variant, []).append(trial)
    most = max(map(len, own.values()))
    shown = most if most <= _COLUMNS_UP_TO else 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("variant", overflow="fold", min_width=12)
    for trial in own[next(iter(own))][:shown]:
        table.add_column(_run_title(study, trial), justify="right", no_wrap=True)
    for title in ([] if shown else ["runs done"]) + ["mean", "±", f"to {found['compared_with']}"]:
        table.add_column(title, justify="right", no_wrap=True)
    differences = {one["variant"]: one for one in found["differences"]}
    for variant in found["variants"]:
        cells = [
            _cell(run["score"], states[trial.name])
            for run, trial in zip(variant["runs"], own[variant["name"]], strict=True)
        ]
        done = sum(run["score"] is not None for run in variant["runs"])
        counted = cells if shown else [f"{done}/{len(cells)}"]
        table.add_row(
            variant["name"],
            *counted,
            _number(variant["mean"]),
            _number(variant["over_folds"] if study.folds else variant["over_seeds"]),
            difference_text(differences.get(variant["name"])),
        )
    console.print(
        f"{found['metric']} on validation, {found['num_done']} of {found['num_runs']} runs"
    )
    console.print(table)
    for trial in trials:
        if states[trial.name] == "failed":
            why = trial.attempts.failures(study.digest_of(trial.variant))[-1]["why"]
            console.print(f"{trial.name}: {why}", soft_wrap=True)


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """`+0.031 [0.010, 0.052] *`; the star marks what is significant after Holm's correction."""
    if difference is None:
        return ""
    text = f"{difference['value']:+.4f}"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return f"{text} *" if difference["is_significant"] else text


def _run_title(study: Study, trial: Trial) -> str:
    parts = [] if len(study.seeds) == 1 and trial.fold else [f"seed {trial.seed}"]
    return " ".join(parts + ([f"fold {trial.fold}"] if trial.fold else []))


def _cell(score: float | None, state: str) -> str:
    return _SHORT.get(state, state) if score is None else f"{score:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
