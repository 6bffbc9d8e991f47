"""`info` as one self-contained page without scripts: tables and bar charts in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shards.label_rules import shown_rule

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { display: block; margin: 0.5em 0 1.5em; }
rect { fill: #3b6ea5; } text { font-size: 11px; fill: #444; }
code { overflow-wrap: anywhere; }
"""
_WIDTH, _HEIGHT, _FOOT = 640, 140, 18  # of a chart, pixels


def page(facts: Mapping[str, Any]) -> str:
    """The page for the result of `shards.reports.info.describe`."""
    title = escape(str(facts["dataset"]))
    classes = facts["classes"]
    splits = [
        [name, *(split["classes"].get(label, 0) for label in classes), split["num_samples"]]
        + [split["shards"], f"{split['bytes'] / 1e6:.1f}"]
        for name, split in facts["splits"].items()
    ]
    source = facts["source"]
    read = [[name, source[name]] for name in ("read", "kept") if name in source]
    read += [[f"dropped: {reason}", n] for reason, n in source.get("dropped", {}).items()]
    for modality in ("text", "image"):
        number = sum(
            split.get("missing", {}).get(modality, 0) for split in facts["splits"].values()
        )
        read += [[f"without {modality}", number]] if number else []
    protocol = facts["protocol"]
    parts = [
        f"<h1>{title}</h1>",
        f"<p>Protocol <b>{escape(str(protocol['name']))}</b> version {protocol['version']}, hash "
        f"<code>{escape(protocol['hash'])}</code>; "
        f"labels {escape(shown_rule(str(facts['label_rule'])))}; "
        f"digest <code>{escape(facts['digest'])}</code></p>",
        "<h2>Splits</h2>",
        _table(["split", *classes, "all", "shards", "MB"], splits),
        "<h2>Samples</h2>",
        _table(["", "samples"], read),
        "<h2>Duplicates</h2>",
        _table(["", ""], [[n.replace("_", " "), v] for n, v in facts["duplicates"].items()]),
    ]
    for name, found in facts["distributions"].items():
        quantiles = found["quantiles"]
        parts += [
            f"<h2>{escape(name)}</h2>",
            _chart(found["histogram"]["counts"], found["histogram"]["edges"]),
            _table(
                ["mean", *(f"{q} %" for q in quantiles)],
                [[found["mean"], *quantiles.values()]],
            ),
        ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        shown = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in shown) + "</tr>"

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _chart(counts: Sequence[int], edges: Sequence[float]) -> str:
    """A bar per bin; the axis is labelled at both ends and in the middle."""
    bar = _WIDTH / len(counts)
    highest = max(counts) or 1
    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT + _FOOT}" role="img">']
    for number, count in enumerate(counts):
        height = _HEIGHT * count / highest
        parts.append(
            f'<rect x="{number * bar:.1f}" y="{_HEIGHT - height:.1f}" width="{bar - 1:.1f}" '
            f'height="{height:.1f}"><title>{edges[number]:g} to {edges[number + 1]:g}: {count:,}'
            "</title></rect>"
        )
    foot = _HEIGHT + _FOOT - 4
    for place, anchor in ((0, "start"), (len(counts) // 2, "middle"), (len(counts), "end")):
        x = _WIDTH * place / len(counts)
        parts.append(f'<text x="{x:.0f}" y="{foot}" text-anchor="{anchor}">{edges[place]:g}</text>')
    parts.append("</svg>")
    return "\n".join(parts)
