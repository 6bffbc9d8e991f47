"""The files of an evaluation, all written aside and renamed.

`report.txt`, `metrics.json`, `predictions.jsonl` and `confusion_matrix.png` say what was measured:
the same bytes at any world size. `evaluation_run.json` says how: world, host, times, openings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.evaluation.metrics import Predictions, probabilities, rounded
from mmsa.evaluation.plots import confusion_matrix_png

REPORT_NAME = "report.txt"
METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "predictions.jsonl"
PICTURE_NAME = "confusion_matrix.png"
RUN_FACTS_NAME = "evaluation_run.json"


def classification_report_text(predictions: Predictions) -> str:
    """scikit-learn's classification report: four digits, class names in the order of the labels."""
    from sklearn.metrics import classification_report

    return str(
        classification_report(
            predictions.labels,
            predictions.predicted,
            labels=list(range(len(predictions.label_names))),
            target_names=list(predictions.label_names),
            digits=4,
            zero_division=0,
        )
    )


def write_report(
    directory: str | os.PathLike[str],
    predictions: Predictions,
    metrics: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Write the four files that say what was measured into `directory`, which is made if missing.

    `metrics` is what `compute_metrics` returned. `identity` says of what: `split` (required), and
    whatever else names the data, weights, precision and code; it must not depend on the world, the
    host or the time, which belong into `write_run_facts`. `metrics.json` holds the metrics and,
    under `identity`, the identity, floats at 6 significant digits; it is renamed last, so where
    it is new the others are. Raises `UserError` where the directory cannot be written.
    """
    split = identity["split"]
    summary = (
        f"accuracy {metrics['accuracy']:.4f}   weighted F1 {metrics['weighted']['f1']:.4f}   "
        f"macro F1 {metrics['macro']['f1']:.4f}"
    )
    picture = confusion_matrix_png(
        metrics["confusion_matrix"],
        predictions.label_names,
        title=f"{split} split, n = {metrics['num_samples']:,}\n{summary}",
    )
    sealed = {**metrics, "identity": dict(sorted(identity.items()))}
    _write_all(
        Path(directory),
        {
            REPORT_NAME: _report_text(predictions, metrics, identity).encode("utf-8"),
            PREDICTIONS_NAME: _prediction_lines(predictions).encode("utf-8"),
            PICTURE_NAME: picture,
            METRICS_NAME: _json_text(sealed).encode("utf-8"),
        },
    )


def write_run_facts(directory: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Write `facts` (world, host, times, count of openings, ...) as `evaluation_run.json`.

    Raises `UserError` where the directory cannot be written.
    """
    _write_all(Path(directory), {RUN_FACTS_NAME: _json_text(facts).encode("utf-8")})


def _report_text(
    predictions: Predictions, metrics: Mapping[str, Any], identity: Mapping[str, Any]
) -> str:
    """The classification report, then what it is a report on, a line each."""
    lines = [classification_report_text(predictions), f"loss: {rounded(metrics['loss'])}"]
    for name, value in sorted(identity.items()):
        shown = value if isinstance(value, str) else json.dumps(rounded(value), ensure_ascii=False)
        lines.append(f"{name}: {shown}")
    return "\n".join(lines) + "\n"


def _prediction_lines(predictions: Predictions) -> str:
    names = predictions.label_names
    rows = zip(
        predictions.keys,
        predictions.labels.tolist(),
        predictions.predicted.tolist(),
        probabilities(predictions.logits).tolist(),
        strict=True,
    )
    lines = []
    for key, label, predicted, probs in rows:
        line = {
            "key": key,
            "label": names[label],
            "predicted": names[predicted],
            "probabilities": dict(zip(names, rounded(probs), strict=True)),
        }
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file aside and only then rename them, in order; nothing is left of a failure."""
    asides = {name: directory / f".{name}.tmp-{os.getpid()}" for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open(asides[name], "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for name, aside in asides.items():
            os.replace(aside, directory / name)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {directory} ({error.strerror or error}); "
            "make room there, or name a directory that can be written"
        ) from None
    finally:
        for aside in asides.values():
            # Where it was renamed there is nothing to remove; where mkdir failed neither.
            if aside.exists():
                aside.unlink()
