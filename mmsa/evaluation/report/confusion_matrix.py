"""The confusion matrix as a PNG, drawn without pyplot: no window system, no global state.

The same input and matplotlib version give the same bytes: the file has neither date nor program
name, and the user's matplotlib settings are not read.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

_CELL_INCHES = 1.15
_RATES_UP_TO = 10  # classes; with more, a cell has only room for its count
_DPI = 150


def confusion_matrix_png(
    confusion_matrix: Sequence[Sequence[int]], label_names: Sequence[str], *, title: str
) -> bytes:
    """A confusion matrix (C, C), rows true, as a PNG: counts and row rates, coloured by rate.

    Rates are relative to the true class, so that rare and frequent classes are equally readable.
    `title` may have several lines.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(confusion_matrix, dtype=np.int64)  # (C, C)
    side = max(2.8, _CELL_INCHES * min(len(counts), _RATES_UP_TO))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(side + 2.2, side + 1.6), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, counts, list(label_names), title)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", bbox_inches="tight", pad_inches=0.2, metadata={"Software": None}
        )
    return buffer.getvalue()


def _draw(figure: Any, counts: np.ndarray, label_names: list[str], title: str) -> None:
    from matplotlib.ticker import PercentFormatter

    support = counts.sum(axis=1)  # (C,)
    rates = counts / np.maximum(support, 1)[:, None]
    axes = figure.add_subplot()
    shades = axes.imshow(rates, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape):
        _write_cell(axes, row, column, counts, rates)
    # parse_math off: a class may be called "a$b".
    ticks = range(len(label_names))
    long = max(map(len, label_names)) > 12 or len(label_names) > 6
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, label_names, parse_math=False, **(slant if long else {}))
    rows = [f"{name}\nn = {n:,}" for name, n in zip(label_names, support, strict=True)]
    axes.set_yticks(ticks, rows, parse_math=False)
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Thin white lines between the cells.
    edges = np.arange(len(label_names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    bar_axes = axes.inset_axes((1.04, 0.0, 0.05, 1.0))  # as high as the matrix
    bar = figure.colorbar(shades, cax=bar_axes, format=PercentFormatter(xmax=1.0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    axes.set_title(title, fontsize=11, pad=14, linespacing=1.5, parse_math=False)


def _write_cell(axes: Any, row: int, column: int, counts: np.ndarray, rates: np.ndarray) -> None:
    """The count and, below it, the row rate; light on dark cells, dark on light ones."""
    colour = "white" if rates[row, column] > 0.55 else "#1a1a1a"
    weight = "bold" if row == column else "normal"
    with_rate = len(counts) <= _RATES_UP_TO
    place: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
    count = f"{counts[row, column]:,}"
    axes.text(
        column, row - (0.1 if with_rate else 0), count, fontsize=13, fontweight=weight, **place
    )
    if with_rate:
        # Without samples the rate is undefined: a dash, not 0 %.
        rate = f"{rates[row, column]:.1%}" if counts[row].sum() else "–"
        axes.text(column, row + 0.2, rate, fontsize=9, **place)
