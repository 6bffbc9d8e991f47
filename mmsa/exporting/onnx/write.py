"""The ONNX directory of an export.

model.onnx          the graph, compared with torch on real samples
model.int8.onnx     with --int8
preprocessing.json  from a raw text and image to the graph's inputs, labels and temperature
tokenizer.json      of the library `tokenizers`, if the model reads text
prepare.py          texts and images -> the inputs, without torch
example.py          predicts one post with it
onnx.json           which weights these are, what was compared, what int8 costs and gains
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsa.calibration import temperature_of
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.export import Export, load_tokenizer_of
from mmsa.exporting.onnx.agreement import (
    TOLERANCE,
    Agreement,
    Logits,
    agreement,
    logits_of_both,
    open_session,
    require_agreement,
    require_free_sizes,
    run,
)
from mmsa.exporting.onnx.example import EXAMPLE, EXAMPLE_NAME, PREPARE_NAME, prepare_source
from mmsa.exporting.onnx.example_check import example_difference
from mmsa.exporting.onnx.graph import OPSET, OUTPUT_NAME, write_graph
from mmsa.exporting.onnx.int8 import cost, cpu_milliseconds, write_int8
from mmsa.exporting.onnx.samples import validation_batches, validation_samples
from mmsa.foundation.new_directory import new_directory
from mmsa.preprocessing import PREPROCESSING_NAME
from mmsa.row_model import RowModel

GRAPH_NAME = "model.onnx"
INT8_NAME = "model.int8.onnx"
TOKENIZER_FILE = "tokenizer.json"
FACTS_FILE = "onnx.json"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_COMPARED = ("onnx", "int8")
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Exported:
    """What was written, for the command's summary."""

    agreement: Agreement
    facts: dict[str, Any]


def require_packages() -> None:
    """Raise `UserError` where the extra `mmsa[onnx]` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--onnx needs {', '.join(missing)}; install the extra: pip install -c constraints.txt "
            "-e '.[onnx]'"
        )


def write_onnx(target: EvalTarget, out: Path, *, int8: bool, num_samples: int) -> Exported:
    """Write the ONNX directory `out` of the export of `target`, a validation split.

    `num_samples` of it are compared. With `int8` all of the split is predicted twice more, for the
    cost in accuracy. Raises `UserError` where something does not agree; then `out` is not there.
    """
    export = target.export
    torch.set_num_threads(export.config.eval.cpu_threads)
    model = RowModel(export, torch.device("cpu"))
    samples = validation_samples(target, num_samples)
    with new_directory(out) as folder:
        _write_preparation(folder, export)
        rows = [samples[row % len(samples)] for row in range(3)]
        write_graph(
            model.model,
            _at_least_two_tokens(model.inputs(rows)),
            folder / GRAPH_NAME,
            max_tokens=_longest(export, model),
        )
        sessions = {"onnx": open_session(folder / GRAPH_NAME, export.config.eval.cpu_threads)}
        require_free_sizes(sessions["onnx"])
        ours, theirs = logits_of_both(model, sessions["onnx"], samples)
        found = agreement(ours, theirs)
        require_agreement(found)
        facts = _facts(export, found, target)
        facts["example"] = example_difference(folder, samples, model)
        if int8:
            facts["int8"] = _add_int8(folder, model, sessions, target)
        facts["cpu_milliseconds_per_sample"] = cpu_milliseconds(model, sessions, samples)
        _write_json(folder / FACTS_FILE, facts)
    return Exported(found, facts)


def _longest(export: Export, model: RowModel) -> int | None:
    """The longest text in tokens that the graph must take."""
    encoder, stated = model.model.text_encoder, export.preprocessing.max_tokens
    if encoder is None or stated is None:
        return None
    return min(stated, encoder.max_positions or stated)


def _at_least_two_tokens(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with one more column of tokens where there is only one: the exporter would take a
    length of 1 for a constant."""
    return {
        name: one.repeat(1, 2)
        if name in ("input_ids", "attention_mask") and one.shape[1] < 2
        else one
        for name, one in inputs.items()
    }


def _write_preparation(folder: Path, export: Export) -> None:
    """Everything but the graph."""
    _write_json(folder / PREPROCESSING_NAME, preparation(export))
    (folder / PREPARE_NAME).write_text(prepare_source(export), encoding="utf-8")
    (folder / EXAMPLE_NAME).write_text(EXAMPLE, encoding="utf-8")
    tokenizer = load_tokenizer_of(export)
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.backend_json, encoding="utf-8")


def preparation(export: Export) -> dict[str, Any]:
    """The content of `preprocessing.json`: all numbers between a raw post and a probability."""
    read = export.preprocessing
    content: dict[str, Any] = {
        "labels": list(export.label_names),
        "temperature": temperature_of(export.calibration),
        "may_lack": list(export.may_lack),
    }
    tokenizer = load_tokenizer_of(export)
    if tokenizer is not None:
        content["text"] = {
            "tokenizer": TOKENIZER_FILE,
            "max_tokens": read.max_tokens,
            "truncation_side": read.truncation_side,
            "pad_id": tokenizer.pad_id,
            "empty_ids": tokenizer.empty_ids,
            "normalize": list(read.packed_normalize),
        }
    if read.image is not None:
        content["image"] = {
            "packed_mode": read.packed_mode,
            "packed_short_side_px": read.packed_short_side_px,
            "packed_quality": read.packed_quality,
            "view": read.image_view,
            "squeezes": read.image.squeezes,
            "image_size_px": read.image.image_size_px,
            "resize_px": read.image.resize_px,
            "interpolation": read.image.interpolation,
        }
    return content


def _facts(export: Export, found: Agreement, target: EvalTarget) -> dict[str, Any]:
    return {
        "format": "mmsa-onnx",
        "version": 1,
        "weights_sha256": export.weights_sha256,
        "step": export.facts.get("step"),
        "opset": OPSET,
        "output": OUTPUT_NAME,
        "packages": {name: importlib.metadata.version(name) for name in ("torch", *_PACKAGES)},
        "compared_with_torch": {
            "split": target.split,
            "shards_digest": target.manifest.digest,
            "num_samples": found.num_samples,
            "logit_difference": float(f"{found.logit_difference:.3g}"),
            "tolerance": TOLERANCE,
            "labels_changed": found.labels_changed,
        },
    }


def _add_int8(
    folder: Path, model: RowModel, sessions: dict[str, Any], target: EvalTarget
) -> dict[str, Any]:
    """Write the int8 graph and say what it costs on all samples of the split."""
    write_int8(folder / GRAPH_NAME, folder / INT8_NAME)
    sessions["int8"] = open_session(folder / INT8_NAME, target.export.config.eval.cpu_threads)
    found: dict[str, list[Logits]] = {name: [] for name in _COMPARED}
    labels: list[int] = []
    for batch in validation_batches(target, _BATCH_SIZE):
        inputs = model.inputs(batch)
        for name in _COMPARED:
            found[name].append(run(sessions[name], inputs))
        labels += [sample.label for sample in batch]
    full, int8 = (np.concatenate(found[name]) for name in _COMPARED)
    temperature = temperature_of(target.export.calibration)
    sizes = {
        name: (folder / file).stat().st_size
        for name, file in (("bytes", GRAPH_NAME), ("bytes_int8", INT8_NAME))
    }
    return {**cost(full, int8, np.array(labels), temperature), **sizes}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(out: Path, exported: Exported) -> str:
    """What was written, as text for the terminal."""
    facts, found = exported.facts, exported.agreement
    lines = [
        f"{out}: logits of {found.num_samples} validation samples differ from torch's by at most "
        f"{found.logit_difference:.1e}",
        f"{EXAMPLE_NAME}, from raw images by Pillow: probabilities differ by at most "
        f"{facts['example']['probability_difference_max']:.1e}, "
        f"{facts['example']['labels_changed']} labels change",
    ]
    if "int8" in facts:
        int8 = facts["int8"]
        lines.append(
            f"int8: accuracy {int8['accuracy']:.4f} -> {int8['accuracy_int8']:.4f} on "
            f"{int8['num_samples']:,} samples, {int8['labels_changed']} labels change, "
            f"{int8['bytes'] / 1e6:.1f} -> {int8['bytes_int8'] / 1e6:.1f} MB"
        )
    for size, row in facts["cpu_milliseconds_per_sample"].items():
        shown = ", ".join(f"{name} {value:g}" for name, value in row.items())
        lines.append(f"CPU ms per sample, batch {size}: {shown}")
    return "\n".join(lines)
