"""A comparison as a table and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa.evaluation.compare.comparison import SIGNIFICANT
from mmsa.evaluation.scores.score_names import columns, title_of, with_interval


def comparison_text(found: Mapping[str, Any]) -> str:
    """The table sorted by the metric, seeds, and what can be told of each pair."""
    metric = found["metric"]
    protocol = found["protocol"]
    lines = [
        f"{found['dataset']}, {found['split']} split, protocol {protocol['name']} "
        f"{protocol['hash'][:12]}, {found['num_samples']:,} samples, by {title_of(metric)}",
        "",
        *columns(_rows(found)),
    ]
    seeds = [_over_seeds(one, metric) for one in found["contenders"] if len(one["runs"]) > 1]
    lines += ["", *seeds] if seeds else []
    facts = found["bootstrap"]
    if not found["pairs"]:
        return "\n".join(lines) + "\n"
    lines += ["", *[in_words(pair, metric) for pair in found["pairs"]]]
    lines += [
        "",
        f"Differences: paired bootstrap, {facts['resamples']:,} resamples of "
        f"{facts['num_groups']:,} duplicate groups. p-values are corrected by Holm's rule for "
        f"{len(found['pairs'])} pair(s).",
    ]
    return "\n".join(lines) + "\n"


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    metric, best = found["metric"], found["contenders"][0]["name"]
    rows = [["model", title_of(metric), "lead of the first", "p", "McNemar p", "accuracy", ""]]
    for place, one in enumerate(found["contenders"]):
        scores = one["scores"]
        row = [one["name"], with_interval(scores[metric])]
        if place == 0:
            row += ["", "", "", with_interval(scores["accuracy"]), ""]
        else:
            pair = next(
                p for p in found["pairs"] if (p["first"], p["second"]) == (best, one["name"])
            )
            difference, exact = pair["differences"][metric], pair["mcnemar"]
            row += [
                with_interval(difference, signed=True) if difference else "-",
                f"{difference['p_holm']:.4f}" if difference else "-",
                f"{exact['p_holm']:.4f}" if exact else "-",
                with_interval(scores["accuracy"]),
                "" if distinguishable(pair, metric) else "not distinguishable from the first",
            ]
        rows.append(row)
    return rows


def distinguishable(pair: Mapping[str, Any], metric: str) -> bool:
    """Whether the difference of the pair is beyond chance after Holm's correction."""
    difference = pair["differences"][metric]
    return difference is not None and difference["p_holm"] < SIGNIFICANT


def in_words(pair: Mapping[str, Any], metric: str) -> str:
    """One sentence: which is better, or that they are not distinguishable."""
    difference = pair["differences"][metric]
    if difference is None:
        return f"{pair['first']} and {pair['second']}: {title_of(metric)} is undefined"
    facts = f"{title_of(metric)} {with_interval(difference, signed=True)}, p = "
    facts += f"{difference['p_holm']:.4f}"
    if distinguishable(pair, metric):
        return f"{pair['first']} is better than {pair['second']} ({facts})"
    return f"{pair['first']} and {pair['second']} are not distinguishable ({facts})"


def _over_seeds(one: Mapping[str, Any], metric: str) -> str:
    over = one["scores"][metric].get("over_seeds")
    if over is None:
        return f"{one['name']}: {title_of(metric)} is undefined"
    return (
        f"{one['name']}, seeds {', '.join(map(str, one['seeds']))}: mean {title_of(metric)} "
        f"{over['mean']:.4f}, deviation {over['deviation']:.4f}, 95 % interval over seeds "
        f"[{over['low']:.4f}, {over['high']:.4f}]"
    )
