"""A comparison as text: a table, and one sentence per pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa.evaluation.compare.comparison import distinguishable
from mmsa.evaluation.scores.score_names import columns, title_of, with_interval


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The table sorted by the metric, the seeds, and a sentence about each pair."""
    metric = comparison["metric"]
    protocol = comparison["protocol"]
    lines = [
        f"{comparison['dataset']}, {comparison['split']} split, protocol {protocol['name']} "
        f"{protocol['hash'][:12]}, {comparison['num_samples']:,} samples, by {title_of(metric)}",
        "",
        *columns(_rows(comparison)),
    ]
    seeds = [_over_seeds(c, metric) for c in comparison["contenders"] if len(c["runs"]) > 1]
    lines += ["", *seeds] if seeds else []
    facts = comparison["bootstrap"]
    if not comparison["pairs"]:
        return "\n".join(lines) + "\n"
    lines += ["", *[_sentence(pair, metric) for pair in comparison["pairs"]]]
    lines += [
        "",
        f"Differences: paired bootstrap, {facts['resamples']:,} resamples of "
        f"{facts['num_groups']:,} duplicate groups. p-values are corrected by Holm's rule for "
        f"{len(comparison['pairs'])} pair(s).",
    ]
    return "\n".join(lines) + "\n"


def _rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    metric, best = comparison["metric"], comparison["contenders"][0]["name"]
    rows = [["model", title_of(metric), "lead of the first", "p", "McNemar p", "accuracy", ""]]
    for place, contender in enumerate(comparison["contenders"]):
        scores = contender["scores"]
        row = [contender["name"], with_interval(scores[metric])]
        if place == 0:
            row += ["", "", "", with_interval(scores["accuracy"]), ""]
        else:
            pair = next(
                p
                for p in comparison["pairs"]
                if (p["first"], p["second"]) == (best, contender["name"])
            )
            difference, exact = pair["differences"][metric], pair["mcnemar"]
            row += [
                with_interval(difference, signed=True) if difference else "-",
                f"{difference['p_holm']:.4f}" if difference else "-",
                f"{exact['p_holm']:.4f}" if exact else "-",
                with_interval(scores["accuracy"]),
                _remark(pair, metric),
            ]
        rows.append(row)
    return rows


def _remark(pair: Mapping[str, Any], metric: str) -> str:
    if not distinguishable(pair, metric):
        return "not distinguishable from the first"
    return "with caution, see below" if pair["caution"] else ""


def _sentence(pair: Mapping[str, Any], metric: str) -> str:
    """Which is better, perhaps with a caution, or that they are not distinguishable."""
    difference = pair["differences"][metric]
    if difference is None:
        return f"{pair['first']} and {pair['second']}: {title_of(metric)} is undefined"
    facts = f"{title_of(metric)} {with_interval(difference, signed=True)}, p = "
    facts += f"{difference['p_holm']:.4f}"
    if pair["caution"]:
        return (
            f"{pair['first']} may be better than {pair['second']} ({facts}), but with caution: "
            f"{pair['caution']}"
        )
    if distinguishable(pair, metric):
        return f"{pair['first']} is better than {pair['second']} ({facts})"
    return f"{pair['first']} and {pair['second']} are not distinguishable ({facts})"


def _over_seeds(contender: Mapping[str, Any], metric: str) -> str:
    over = contender["scores"][metric].get("over_seeds")
    if over is None:
        return f"{contender['name']}: {title_of(metric)} is undefined"
    seeds = ", ".join(map(str, contender["seeds"]))
    return (
        f"{contender['name']}, seeds {seeds}: mean {title_of(metric)} {over['mean']:.4f}, "
        f" deviation {over['deviation']:.4f}, 95 % interval over seeds "
        f"[{over['low']:.4f}, {over['high']:.4f}]"
    )
