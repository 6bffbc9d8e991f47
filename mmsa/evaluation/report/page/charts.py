"""The charts of the page as SVG text. The same input gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmsa.evaluation.scores.metrics import Predictions, probabilities

# Distinguishable with colour blindness (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
_POINTS = 200  # per curve; more would not be visible
_NAME_UP_TO = 24  # characters of a class name beside a bar
_SIZE = (4.4, 3.6)  # inches


def svg(draw: Callable[[Any], None], size: tuple[float, float] = _SIZE) -> str:
    """What `draw` draws on matplotlib axes of `size` inches, as an `<svg>` element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings = {"svg.hashsalt": "mmsa", "svg.fonttype": "none", "font.size": 9}
        settings |= {"axes.spines.top": False, "axes.spines.right": False}
        settings |= {"text.parse_math": False}  # names of classes, choices of a search
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=COLOURS)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def curve_classes(predictions: Predictions) -> list[int]:
    """The classes with a curve: those that occur, or as many of them as there are colours.

    Then they are those with the most samples. There is no curve if all samples are of one class.
    """
    support = np.bincount(predictions.labels, minlength=len(predictions.label_names))
    order = np.argsort(-support, kind="stable")[: len(COLOURS)]
    return sorted(c for c in order.tolist() if 0 < support[c] < len(predictions.labels))


def curve_note(predictions: Predictions) -> str:
    """Which classes have no curve, as a sentence; empty if all that occur have one."""
    num_found = len(np.unique(predictions.labels))
    if num_found <= len(COLOURS):
        return ""
    return (
        f"Curves are those of the {len(COLOURS)} classes with the most samples, of {num_found:,} "
        "that occur; metrics.json has the areas of all."
    )


def curves(predictions: Predictions, kind: str) -> str:
    """One-vs-rest curves of the classes in `curve_classes`; `kind` is "roc" or "pr"."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    probs = probabilities(predictions.logits)

    def draw(axes: Any) -> None:
        lines: list[Any] = []
        names: list[str] = []
        for place, c in enumerate(curve_classes(predictions)):
            name, truth = predictions.label_names[c], predictions.labels == c
            if kind == "roc":
                across, up, _ = roc_curve(truth, probs[:, c])
            else:
                up, across, _ = precision_recall_curve(truth, probs[:, c])
            kept = np.unique(np.linspace(0, len(across) - 1, _POINTS).round().astype(int))
            lines += axes.plot(across[kept], up[kept], linewidth=1.6, color=COLOURS[place])
            names.append(name)
        if kind == "roc":
            axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle="--")
        axes.set_xlabel("false positive rate" if kind == "roc" else "recall")
        axes.set_ylabel("true positive rate" if kind == "roc" else "precision")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        if lines:  # named here: labels of lines that begin with _ are not shown
            corner = "lower right" if kind == "roc" else "lower left"
            axes.legend(lines, names, frameon=False, loc=corner)

    return svg(draw)


def reliability(calibration: Mapping[str, Any]) -> str:
    """Accuracy against confidence, without and with the temperature."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle="--")
        for key, label, colour in (
            ("bins", "as trained", COLOURS[0]),
            ("bins_with_temperature", "with temperature", COLOURS[1]),
        ):
            bins = calibration.get(key, [])
            if bins:
                across = [one["confidence"] for one in bins]
                axes.plot(
                    across, [b["accuracy"] for b in bins], "o-", markersize=4, color=colour,
                    label=label,
                )  # fmt: skip
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
        axes.legend(frameon=False, loc="upper left")

    return svg(draw)


def per_class(scores: Mapping[str, Any], label_names: Sequence[str]) -> str:
    """Precision, recall and F1 of each class, with intervals."""
    width = 0.26

    def draw(axes: Any) -> None:
        for place, name in enumerate(("precision", "recall", "f1")):
            found = [scores[f"{name}/{label}"] for label in label_names]
            values = np.array([one["value"] for one in found])
            low = np.array([one.get("low", one["value"]) for one in found])
            high = np.array([one.get("high", one["value"]) for one in found])
            across = np.arange(len(label_names)) + (place - 1) * width
            # A percentile interval need not contain the value itself.
            errors = np.maximum([values - low, high - values], 0)
            axes.bar(
                across, values, width * 0.92, color=COLOURS[place], label=name.replace("f1", "F1")
            )
            axes.errorbar(across, values, errors, fmt="none", ecolor="#333333", elinewidth=1)
        axes.set_xticks(range(len(label_names)), label_names)
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))

    return svg(draw, (max(4.4, 1.3 * len(label_names)), 3.6))


def f1_of_classes(scores: Mapping[str, Any], label_names: Sequence[str]) -> str:
    """F1 of each class with its interval, a line for each class."""

    def draw(axes: Any) -> None:
        found = [scores[f"f1/{label}"] for label in label_names]
        values = np.array([one["value"] for one in found])
        low = np.array([one.get("low", one["value"]) for one in found])
        high = np.array([one.get("high", one["value"]) for one in found])
        down = np.arange(len(label_names))
        errors = np.maximum([values - low, high - values], 0)
        axes.barh(down, values, 0.7, color=COLOURS[2])
        axes.errorbar(values, down, xerr=errors, fmt="none", ecolor="#333333", elinewidth=1)
        axes.set_yticks(down, [_shortened(name) for name in label_names])
        axes.set(xlim=(0, 1.02), ylim=(len(label_names) - 0.4, -0.6), xlabel="F1")

    return svg(draw, (_SIZE[0], 0.6 + 0.19 * len(label_names)))


def training(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Title -> chart of the run's `metrics.jsonl`; empty if there is nothing to show."""
    scored = ("accuracy", "macro_f1", "weighted_f1")
    train = _measures(lines, "train", ("step", "loss"))
    validation = _measures(lines, "validation", ("step", "loss", *scored))
    charts = {}
    if train or validation:

        def losses(axes: Any) -> None:
            for found, label, style in ((train, "train", "-"), (validation, "validation", "o-")):
                steps = [line["step"] for line in found]
                values = [line["loss"] for line in found]
                axes.plot(*_thinned(steps, values), style, markersize=4, linewidth=1.2, label=label)
            axes.set(xlabel="step", ylabel="loss")
            axes.legend(frameon=False)

        charts["Loss"] = svg(losses)
    if validation:

        def scores(axes: Any) -> None:
            for name in scored:
                steps = [line["step"] for line in validation]
                values = [line[name] for line in validation]
                axes.plot(steps, values, "o-", markersize=4, label=name.replace("_f1", " F1"))
            axes.set(xlabel="step", ylabel="validation score")
            axes.legend(frameon=False)

        charts["Validation scores"] = svg(scores)
    return charts


def _measures(
    lines: Sequence[Mapping[str, Any]], kind: str, names: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The lines of a kind in which all of `names` are numbers."""
    return [
        line
        for line in lines
        if line.get("kind") == kind
        and all(isinstance(line.get(name), int | float) for name in names)
    ]


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[Any, Any]:
    """At most `_POINTS` points, evenly spaced."""
    if not steps:
        return [], []
    kept = np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int))
    return np.asarray(steps)[kept], np.asarray(values)[kept]


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_UP_TO else f"{name[: _NAME_UP_TO - 1]}…"
