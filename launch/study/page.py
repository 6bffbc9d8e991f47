"""study.html: the answer on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.study.table import difference_text
from mmsa.evaluation.scores.sums import smaller_is_better

_TEMPLATE = Path(__file__).parent / "study.html.j2"


def render(
    found: Mapping[str, Any],
    final: Mapping[str, Any] | None,
    commands: Mapping[str, Sequence[str]],
    title: str,
) -> bytes:
    """The page in UTF-8; `commands` are variant -> the command of each of its runs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from mmsa.evaluation.report.page.charts import svg
    from mmsa.evaluation.scores.score_names import title_of, with_interval

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"interval": with_interval, "title_of": title_of}
    known = [variant for variant in found["variants"] if variant["mean"] is not None]
    size = (7.2, 0.8 + 0.34 * max(1, len(known)))
    text = environment.get_template(_TEMPLATE.name).render(
        title=title,
        found=found,
        final=final,
        commands=commands,
        verdicts=verdicts(found),
        differences={one["variant"]: difference_text(one) for one in found["differences"]},
        scores_chart=svg(lambda axes: _draw_scores(axes, known, found), size) if known else "",
        search=_search_of(found),
        differences_chart=svg(lambda axes: _draw_differences(axes, found), size)
        if found["differences"]
        else "",
    )
    return text.encode("utf-8")


def _search_of(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of a search: what is to be said of it, and its charts."""
    from launch.study.search import charts
    from launch.study.search.summary import verdict
    from mmsa.evaluation.report.page.charts import svg

    if "search" not in found:
        return None
    search = found["search"]
    complete = [row for row in search["trials"] if row["state"] == "complete"]
    shown = {}
    if complete:
        shown["history"] = svg(lambda axes: charts.draw_history(axes, search), (7.2, 3.2))
    if len(complete) > 1 and len(search["space"]) > 1:
        width = max(7.2, 1.3 * len(search["space"]))
        shown["parallel"] = svg(lambda axes: charts.draw_parallel(axes, search), (width, 3.6))
    if search["importances"]:
        size = (7.2, 0.8 + 0.3 * len(search["importances"]))
        shown["importances"] = svg(lambda axes: charts.draw_importances(axes, search), size)
    sentences = verdict(search, is_confirmed=bool(found["variants"]))
    return {"verdict": sentences, "charts": shown}


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What can be said, a sentence for each variant compared with the baseline."""
    compared = found["compared_with"]
    sign = _better(found)
    sentences = []
    for one in _best_first(found):
        numbers = difference_text(one).removesuffix(" *")
        if not one["is_significant"]:
            sentences.append(
                f"{one['variant']} and {compared} are not distinguishable ({numbers})."
            )
        elif sign * one["value"] > 0:
            sentences.append(f"{one['variant']} is ahead of {compared} ({numbers}).")
        else:
            sentences.append(f"{one['variant']} is behind {compared} ({numbers}).")
        if one["caution"]:
            sentences[-1] += f" With caution: {one['caution']}."
    return sentences


def _better(found: Mapping[str, Any]) -> int:
    """The sign of a difference to the baseline that is an improvement."""
    return -1 if smaller_is_better(found["metric"]) else 1


def _best_first(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(found["differences"], key=lambda each: -_better(found) * each["value"])


def _draw_scores(
    axes: Any, variants: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> None:
    """A dot for each run, a bar for each mean; the best variant on top."""
    names = [variant["name"] for variant in variants]
    for place, variant in enumerate(variants):
        scores = [run["score"] for run in variant["runs"] if run["score"] is not None]
        axes.plot(scores, [place] * len(scores), "o", color="#0072b2", alpha=0.55, markersize=5)
        axes.plot(
            [variant["mean"]], [place], "|", color="#1c2128", markersize=16, markeredgewidth=2
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{found['metric']} on validation: runs (dots), mean (bar)")
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6)


def _draw_differences(axes: Any, found: Mapping[str, Any]) -> None:
    rows = _best_first(found)
    for place, one in enumerate(rows):
        colour = "#0072b2" if one["is_significant"] else "#999999"
        if one["low"] is not None:
            axes.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=2)
        axes.plot([one["value"]], [place], "o", color=colour)
    axes.axvline(0, color="#1c2128", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [one["variant"] for one in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{found['metric']}, difference to {found['compared_with']}, 95 % interval")
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
