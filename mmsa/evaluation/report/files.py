"""The files of an evaluation, all written aside and renamed.

`report.txt`, `metrics.json`, the predictions and `confusion_matrix.png` say what was measured: the
same bytes at any world size. `evaluation_run.json` says how: world, host, times, openings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsa import atomic_write
from mmsa.errors import UserError
from mmsa.evaluation.report.plots import confusion_matrix_png
from mmsa.evaluation.report.predictions_file import FORMATS, file_content
from mmsa.evaluation.report.summary import summary_text
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import classification_report_text

REPORT_NAME = "report.txt"
METRICS_NAME = "metrics.json"
IMAGE_NAME = "confusion_matrix.png"
RUN_FACTS_NAME = "evaluation_run.json"


def write_report(
    directory: str | os.PathLike[str],
    predictions: Predictions,
    found: Mapping[str, Any],
    identity: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    file_format: str = "jsonl",
    further: Mapping[str, Any] | None = None,
) -> None:
    """Write the files that say what was measured into `directory`, which is made if missing.

    `found` is what `findings` returned, `rows` those of the predictions file. `identity` says of
    what: `split` (required), and whatever else names the data, weights, precision and code; it must
    not depend on the world, the host or the time, which belong into `write_run_facts`. `further`
    are files beside them, JSON or bytes. `metrics.json` is renamed last, so where it is new the
    others are. Raises `UserError` where the directory cannot be written.
    """
    sealed = {**found, "identity": dict(sorted(identity.items()))}
    name = FORMATS[file_format]
    _write_all(
        Path(directory),
        {
            REPORT_NAME: _report_text(predictions, found, identity).encode("utf-8"),
            name: file_content(rows, file_format),
            IMAGE_NAME: _picture(predictions, found, str(identity["split"])),
            **_contents(further or {}),
            METRICS_NAME: _json_text(sealed).encode("utf-8"),
        },
    )
    for other in set(FORMATS.values()) - {name}:
        (Path(directory) / other).unlink(missing_ok=True)  # of an earlier report


def write_files(directory: str | os.PathLike[str], files: Mapping[str, Any]) -> None:
    """Write JSON (of a mapping) or bytes under each name; raises as `write_report` does."""
    _write_all(Path(directory), _contents(files))


def _contents(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else _json_text(content).encode("utf-8")
        for name, content in files.items()
    }


def write_run_facts(directory: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Write `facts` (world, host, times, count of openings, ...) as `evaluation_run.json`.

    Raises `UserError` where the directory cannot be written.
    """
    write_files(directory, {RUN_FACTS_NAME: facts})


def read_metrics(directory: Path) -> dict[str, Any]:
    """The content of `metrics.json` of a report; `UserError` where it is none of this version."""
    path = directory / METRICS_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not {"scores", "identity"} <= content.keys():
            raise ValueError("it has no scores; an earlier version wrote it")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no report of an evaluation ({error}); evaluate again") from None
    return dict(content)


def _picture(predictions: Predictions, found: Mapping[str, Any], split: str) -> bytes:
    summary = (
        f"accuracy {found['accuracy']:.4f}   weighted F1 {found['weighted']['f1']:.4f}   "
        f"macro F1 {found['macro']['f1']:.4f}"
    )
    return confusion_matrix_png(
        found["confusion_matrix"],
        predictions.label_names,
        title=f"{split} split, n = {found['num_samples']:,}\n{summary}",
    )


def _report_text(
    predictions: Predictions, found: Mapping[str, Any], identity: Mapping[str, Any]
) -> str:
    """The classification report, the summary, then what it is a report on, a line each."""
    lines = [classification_report_text(predictions), summary_text(found)]
    for name, value in sorted(identity.items()):
        shown = value if isinstance(value, str) else json.dumps(rounded(value), ensure_ascii=False)
        lines.append(f"{name}: {shown}")
    return "\n".join(lines) + "\n"


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file or none; `UserError` where that fails."""
    try:
        atomic_write.write_files(directory, files)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {directory} ({error.strerror or error}); "
            "free some space, or choose a writable directory"
        ) from None
