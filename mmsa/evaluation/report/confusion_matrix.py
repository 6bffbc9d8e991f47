"""The confusion matrix as a PNG, drawn without pyplot: no window system, no global state.

The same input and matplotlib version give the same bytes: the file has neither date nor program
name, and the user's matplotlib settings are not read.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmsa.evaluation.scores.confusions import RATES_UP_TO, ShownMatrix, shown_matrix

_CELL_INCHES = 1.15
_LEAST_CELL_INCHES = 0.45
_DPI = 150
_NAME_UP_TO = 28  # characters of a class name; longer ones would leave no room for the cells


def confusion_matrix_png(
    confusion_matrix: Sequence[Sequence[int]], label_names: Sequence[str], *, title: str
) -> bytes:
    """A confusion matrix (C, C), rows true, as a PNG: counts and row rates, coloured by rate.

    Rates are relative to the true class, so that rare and frequent classes are equally readable.
    With many classes, `shown_matrix` decides which of them have a row. `title` may have several
    lines.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = shown_matrix(confusion_matrix, label_names)
    size = len(shown.counts)
    side = max(2.8, _CELL_INCHES * min(size, RATES_UP_TO), _LEAST_CELL_INCHES * size)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(side + 2.2, side + 1.6), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, shown, title, cell_inches=side / size)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", bbox_inches="tight", pad_inches=0.2, metadata={"Software": None}
        )
    return buffer.getvalue()


def _draw(figure: Any, shown: ShownMatrix, title: str, *, cell_inches: float) -> None:
    from matplotlib.ticker import PercentFormatter

    counts, few = shown.counts, len(shown.counts) <= RATES_UP_TO
    support = counts.sum(axis=1)  # (K,)
    rates = counts / np.maximum(support, 1)[:, None]
    axes = figure.add_subplot()
    shades = axes.imshow(rates, cmap="Blues", vmin=0.0, vmax=1.0)
    _write_cells(axes, counts, rates, cell_inches)
    # parse_math off: a class may be called "a$b".
    label_names = [_shortened(name) for name in shown.names]
    ticks = range(len(label_names))
    long = max(map(len, label_names)) > 12 or len(label_names) > 6
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, label_names, parse_math=False, **(slant if long else {}))
    between = "\n" if few else "   "
    rows = [f"{name}{between}n = {n:,}" for name, n in zip(label_names, support, strict=True)]
    axes.set_yticks(ticks, rows, parse_math=False)
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Thin white lines between the cells.
    edges = np.arange(len(label_names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white" if few else "#e3e6ea", linewidth=2 if few else 0.6)
    axes.tick_params(which="minor", length=0)
    bar_axes = axes.inset_axes((1.04, 0.0, 0.05 if few else 0.02, 1.0))  # as high as the matrix
    bar = figure.colorbar(shades, cax=bar_axes, format=PercentFormatter(xmax=1.0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    title = "\n".join([title, *textwrap.wrap(shown.note, 100)])
    axes.set_title(title, fontsize=11, pad=14, linespacing=1.5, parse_math=False)


def _write_cells(axes: Any, counts: np.ndarray, rates: np.ndarray, cell_inches: float) -> None:
    """The count and, below it, the row rate; light on dark cells, dark on light ones.

    With many classes there is only the count, in a size that fits the cell, and an empty cell says
    0.
    """
    few = len(counts) <= RATES_UP_TO
    for row, column in np.ndindex(*counts.shape):
        if not few and not counts[row, column]:
            continue
        colour = "white" if rates[row, column] > 0.55 else "#1a1a1a"
        weight = "bold" if row == column else "normal"
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        count, up = f"{counts[row, column]:,}", 0.1 if few else 0
        points = 0.85 * 72 * cell_inches / (0.62 * max(3, len(count)))  # a digit: 0.62 of its size
        size = 13 if few else min(13.0, points)
        axes.text(column, row - up, count, fontsize=size, fontweight=weight, **place)
        if few:
            # Without samples the rate is undefined: a dash, not 0 %.
            rate = f"{rates[row, column]:.1%}" if counts[row].sum() else "–"
            axes.text(column, row + 0.2, rate, fontsize=9, **place)


def _shortened(name: str) -> str:
    """`name`, or its beginning and end: names of many classes often differ only in their ends."""
    return name if len(name) <= _NAME_UP_TO else f"{name[:16]}…{name[16 - _NAME_UP_TO + 1 :]}"
