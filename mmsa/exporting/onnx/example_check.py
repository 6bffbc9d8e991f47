"""What the program without torch predicts, beside torch, from the same image files."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from mmsa.calibration import temperature_of
from mmsa.data.decoding.raw_input import raw_view
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.exporting.onnx.example import EXAMPLE_NAME, PREPARE_NAME
from mmsa.exporting.onnx.samples import Sample, batches
from mmsa.row_model import RowModel


class _Row(NamedTuple):
    text: str | None
    view: torch.Tensor | None


def example_difference(folder: Path, samples: Sequence[Sample], model: RowModel) -> dict[str, Any]:
    """How far `example.py` of `folder` is from torch on n samples, as raw posts.

    The stored images are taken for files that somebody posts, and both prepare them again.
    """
    export, program = model.export, _program(folder)
    temperature = temperature_of(export.calibration)
    apart, changed = [], 0
    for batch in batches(samples, (32,)):
        rows = [
            _Row(one.text, None if one.jpeg is None else raw_view(one.jpeg, export.preprocessing))
            for one in batch
        ]
        ours = probabilities(model.logits(rows).astype(np.float64) / temperature)
        files = [None if one.jpeg is None else io.BytesIO(one.jpeg) for one in batch]
        theirs = np.asarray(program.predict([one.text for one in batch], files))
        apart.append(np.abs(ours - theirs).max(axis=1))
        changed += int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
    differences = np.concatenate(apart)
    return {
        "num_samples": len(differences),
        "labels_changed": changed,
        "probability_difference_mean": round(float(differences.mean()), 6),
        "probability_difference_max": round(float(differences.max()), 6),
    }


def _program(folder: Path) -> ModuleType:
    """`example.py` as a module; it imports `prepare.py` by name, as it will where it runs."""
    prepare = Path(PREPARE_NAME).stem
    before = sys.modules.pop(prepare, None)
    try:
        sys.modules[prepare] = _module(folder / PREPARE_NAME)
        return _module(folder / EXAMPLE_NAME)
    finally:
        sys.modules.pop(prepare, None)
        if before is not None:
            sys.modules[prepare] = before


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mmsa_onnx_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
