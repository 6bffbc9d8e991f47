"""The charts of a search: its history, parallel coordinates, importances.

Each draws on matplotlib axes; `found` is a `summary`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launch.study.search.settings import as_text

_NAME_UP_TO = 22  # characters of a choice
_BLUE, _INK, _LINE = "#0072b2", "#1c2128", "#d8dee4"


def draw_history(axes: Any, found: Mapping[str, Any]) -> None:
    """A dot for each trial in their order, a ring for a pruned one, and the best so far.

    There is a complete trial.
    """
    smaller = found["direction"] == "minimize"
    best: list[tuple[int, float]] = []
    low, high = _shown(found)
    for number, row in enumerate(found["trials"]):
        if row["value"] is None or row["state"] not in ("complete", "pruned"):
            continue
        pruned = row["state"] == "pruned"
        face = "white" if pruned else _BLUE
        shown = min(high, max(low, row["value"]))
        axes.plot([number], [shown], "o", color=_BLUE, markerfacecolor=face, markersize=5)
        so_far = best[-1][1] if best else row["value"]
        if not pruned:
            best.append(
                (number, min(so_far, row["value"]) if smaller else max(so_far, row["value"]))
            )
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=_INK, linewidth=1)
    axes.set_xlabel("trial (ring: pruned; line: the best so far)")
    axes.set_ylabel(f"{found['metric']} on validation")
    axes.grid(color=_LINE, linewidth=0.6)


def _shown(found: Mapping[str, Any]) -> tuple[float, float]:
    """The range of the complete trials and as much again around it; others are at its edge."""
    values = [row["value"] for row in found["trials"] if row["state"] == "complete"]
    around = max(values) - min(values) or 0.1 * abs(values[0]) or 0.1
    return min(values) - around, max(values) + around


def draw_parallel(axes: Any, found: Mapping[str, Any]) -> None:
    """A line for each complete trial over an axis for each parameter; the darker the better."""
    names = list(found["space"])
    trials = {row["name"]: row for row in found["trials"]}
    rows = [trials[name] for name in reversed(found["ranking"])]  # the best on top
    for place, row in enumerate(rows):
        heights = [_height(found["space"][name], row["values"].get(name)) for name in names]
        share = (place + 1) / len(rows)
        axes.plot(range(len(names)), heights, color=_BLUE, alpha=0.12 + 0.78 * share**3, marker=".")
    for place, name in enumerate(names):
        axes.axvline(place, color=_LINE, linewidth=0.8, zorder=0)
        for height, text in _ticks(found["space"][name]):
            axes.annotate(text, (place, height), fontsize=7, color=_INK, xytext=(3, 2),
                          textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names], fontsize=7)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.08)
    axes.set_xlim(-0.3, len(names) - 0.4)


def draw_importances(axes: Any, found: Mapping[str, Any]) -> None:
    """A bar for each parameter, the most important on top."""
    bars = sorted(found["importances"].items(), key=lambda one: one[1])
    axes.barh([name for name, _ in bars], [value for _, value in bars], color=_BLUE)
    axes.set_xlabel("importance (PED-ANOVA, shares of 1)")
    axes.grid(axis="x", color=_LINE, linewidth=0.6)


def _height(range_: Mapping[str, Any], value: Any) -> float:
    """Where a value is on its axis, from 0 to 1; NaN of one that the trial does not have."""
    if value is None:
        return math.nan
    choices = _choices(range_)
    if choices:
        return choices.index(value) / (len(choices) - 1)
    low, high = _bounds(range_)
    if range_.get("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _ticks(range_: Mapping[str, Any]) -> list[tuple[float, str]]:
    choices = _choices(range_)
    if choices:
        return [
            (place / (len(choices) - 1), text[:_NAME_UP_TO]) for place, text in enumerate(choices)
        ]
    low, high = _bounds(range_)
    return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]


def _choices(range_: Mapping[str, Any]) -> list[str]:
    return [as_text(choice) for choice in range_.get("categorical", ())]


def _bounds(range_: Mapping[str, Any]) -> Sequence[float]:
    return range_.get("float") or range_["int"]
