"""What a soup is made of and how it was chosen, as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsa.evaluation.report.summary import looks_text
from mmsa.evaluation.scores.score_names import columns, title_of


def soup_text(soup: Mapping[str, Any], out: Path) -> str:
    """The ingredients in the order in which they were tried, the result and what it is worth."""
    metric = title_of(str(soup["metric"]))
    inside = [one["weights_sha256"] for one in soup["ingredients"]]
    tried = sorted(
        [*soup["ingredients"], *soup["left_out"]],
        key=lambda one: one["score"],
        reverse=soup["metric"] != "loss",
    )
    rows = [["ingredient", f"{metric} on val", "of the mean with it", "in the soup"]]
    for one in tried:
        with_it = one.get("score_of_mean_with_it")
        rows.append(
            [
                one["name"],
                f"{one['score']:.4f}",
                "" if with_it is None else f"{with_it:.4f}",
                "yes" if one["weights_sha256"] in inside else "no",
            ]
        )
    rows.append([f"{soup['kind']} soup of {len(inside)}", f"{soup['score']:.4f}", "", ""])
    lines = ["", *columns(rows)]
    if soup["kind"] == "greedy" and len(inside) == 1:
        lines.append("no mean was at least as good as the best ingredient, so the soup is that one")
    if soup["batch_norm_samples"]:
        lines.append(
            f"BatchNorm statistics: computed again on {soup['batch_norm_samples']:,} training "
            "samples, for each mean"
        )
    lines.append(looks_text(soup))
    lines.append(f"soup in {out}; evaluate it with: python evaluate.py {out}")
    return "\n".join(lines)
