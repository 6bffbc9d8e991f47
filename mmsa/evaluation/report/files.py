"""The files of an evaluation, written atomically.

`report.txt`, `metrics.json`, the predictions and `confusion_matrix.png` say what was measured: they
have the same bytes at any world size. `evaluation_run.json` says how: world size, host, times and
openings of the test split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.evaluation.report.confusion_matrix import confusion_matrix_png
from mmsa.evaluation.report.predictions_file import FORMATS, file_content
from mmsa.evaluation.report.summary import summary_text
from mmsa.evaluation.scores.metrics import Predictions, rounded
from mmsa.evaluation.scores.score_names import classification_report_text
from mmsa.foundation import atomic_write
from mmsa.foundation.parsing import parse_json

REPORT_NAME = "report.txt"
METRICS_NAME = "metrics.json"
IMAGE_NAME = "confusion_matrix.png"
RUN_FACTS_NAME = "evaluation_run.json"


def write_report(
    directory: str | os.PathLike[str],
    predictions: Predictions,
    findings: Mapping[str, Any],
    identity: Mapping[str, Any],
    rows: Iterable[dict[str, Any]],
    *,
    file_format: str = "jsonl",
    extra_files: Mapping[str, Any] | None = None,
) -> None:
    """Write the files that say what was measured to `directory`, which is created if missing.

    `findings` come from `compute_findings`; `rows` go to the predictions file. `identity` must have
    `split` and identifies data, weights, precision and code. It must not depend on world size, host
    or time; these go to `write_run_facts`. `extra_files` are JSON or bytes by file name.
    `metrics.json` is renamed last: if it is new, all other files are. Raises `UserError` if the
    directory cannot be written.
    """
    metrics = {**findings, "identity": dict(sorted(identity.items()))}
    name = FORMATS[file_format]
    _write_all(
        Path(directory),
        {
            REPORT_NAME: _report_text(predictions, findings, identity).encode("utf-8"),
            name: file_content(rows, file_format),
            IMAGE_NAME: _confusion_matrix(predictions, findings, str(identity["split"])),
            **_contents(extra_files or {}),
            METRICS_NAME: _json_text(metrics).encode("utf-8"),
        },
    )
    for other in set(FORMATS.values()) - {name}:
        (Path(directory) / other).unlink(missing_ok=True)  # from an earlier report


def write_files(directory: str | os.PathLike[str], files: Mapping[str, Any]) -> None:
    """Write each mapping as JSON, bytes as they are; raises as `write_report` does."""
    _write_all(Path(directory), _contents(files))


def _contents(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else _json_text(content).encode("utf-8")
        for name, content in files.items()
    }


def write_run_facts(directory: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Write `facts` (world size, host, times, openings, ...) as `evaluation_run.json`.

    Raises `UserError` if the directory cannot be written.
    """
    write_files(directory, {RUN_FACTS_NAME: facts})


def read_metrics(directory: Path) -> dict[str, Any]:
    """The contents of a report's `metrics.json`; `UserError` if it is not of this version."""
    path = directory / METRICS_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if not {"scores", "identity"} <= content.keys():
            raise ValueError("it has no scores; an earlier version wrote it")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a valid report ({error}); evaluate again") from None
    return dict(content)


def _confusion_matrix(predictions: Predictions, findings: Mapping[str, Any], split: str) -> bytes:
    summary = (
        f"accuracy {findings['accuracy']:.4f}   weighted F1 {findings['weighted']['f1']:.4f}   "
        f"macro F1 {findings['macro']['f1']:.4f}"
    )
    return confusion_matrix_png(
        findings["confusion_matrix"],
        predictions.label_names,
        title=f"{split} split, n = {findings['num_samples']:,}\n{summary}",
    )


def _report_text(
    predictions: Predictions, findings: Mapping[str, Any], identity: Mapping[str, Any]
) -> str:
    """The classification report, the summary, then the identity, one field a line."""
    lines = [classification_report_text(predictions), summary_text(findings)]
    for name, value in sorted(identity.items()):
        shown = value if isinstance(value, str) else json.dumps(rounded(value), ensure_ascii=False)
        lines.append(f"{name}: {shown}")
    return "\n".join(lines) + "\n"


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file or none; `UserError` if that fails."""
    try:
        atomic_write.write_files(directory, files)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {directory} ({error.strerror or error}); "
            "free some space, or choose a writable directory"
        ) from None
