"""The predictions of a report, one row per sample: `predictions.jsonl` or `.parquet`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.errors import UserError
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions, probabilities, rounded
from mmsa.foundation.parsing import parse_json

JSONL_NAME = "predictions.jsonl"
PARQUET_NAME = "predictions.parquet"
FORMATS = {"jsonl": JSONL_NAME, "parquet": PARQUET_NAME}


def rows_of(
    predictions: Predictions, facts: Sequence[SampleFacts], temperature: float
) -> Iterator[dict[str, Any]]:
    """One row per sample, sorted by key. Classes are given by name.

    `logits` are the model's, float32 with all digits: C of them, or one for two classes that share
    it. `probabilities` are computed with the export's `temperature`, as in prediction.
    """
    names = predictions.label_names
    probs = probabilities(predictions.logits, temperature)
    predicted = predictions.predicted
    for row, sample in enumerate(facts):
        yield {
            "key": sample.key,
            "label": names[predictions.labels[row]],
            "predicted": names[predicted[row]],
            "probabilities": dict(zip(names, rounded(probs[row].tolist()), strict=True)),
            "logits": [float(str(logit)) for logit in predictions.logits[row]],
            "text_label": sample.text_label,
            "image_label": sample.image_label,
            "group": f"{sample.group:016x}",
        }


def file_content(rows: Iterable[dict[str, Any]], file_format: str) -> bytes:
    """The bytes of the file in one of `FORMATS`; `UserError` if pyarrow is needed but missing."""
    if file_format == "jsonl":
        # Row by row: the rows of 1,000 classes, as Python objects, are ten times as large.
        content = io.BytesIO()
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
            content.write(line.encode("utf-8"))
        return content.getvalue()  # without a copy
    check_format(file_format)
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def check_format(file_format: str) -> None:
    """Raise `UserError` if the format needs pyarrow and it is not installed."""
    if file_format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                "predictions in Parquet need pyarrow: pip install 'mmsa[parquet]', or use "
                "--predictions jsonl"
            ) from None


def read_predictions(
    report: Path, label_names: Sequence[str]
) -> tuple[Predictions, np.ndarray[Any, np.dtype[np.uint64]]]:
    """(predictions, duplicate group of each) from the predictions file of a report.

    Raises `UserError` if it is missing or invalid.
    """
    path = next((report / name for name in FORMATS.values() if (report / name).is_file()), None)
    if path is None:
        raise UserError(f"{report} has neither {JSONL_NAME} nor {PARQUET_NAME}; evaluate again")
    try:
        if path.suffix == ".jsonl":
            rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        else:
            check_format("parquet")
            from pyarrow import parquet

            rows = parquet.read_table(path).to_pylist()
        names = list(label_names)
        predictions = Predictions(
            [row["key"] for row in rows],
            np.array([names.index(row["label"]) for row in rows], dtype=np.int64),
            np.array([row["logits"] for row in rows], dtype=np.float32),
            tuple(names),
        )
        return predictions, np.array([int(row["group"], 16) for row in rows], dtype=np.uint64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not contain the predictions of a report ({error}); evaluate again"
        ) from None
