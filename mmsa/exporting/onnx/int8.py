"""Weights of matrix products in 8 bits, and what that costs and gains on this machine.

Dynamic quantization of onnxruntime: weights by output channel, activations by their range in each
call, so nothing has to be calibrated. Convolutions stay in float32: onnxruntime has no fast kernel
for dynamically quantized ones, and images are where 8 bits cost most accuracy (docs/export.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmsa.evaluation.scores.metrics import probabilities
from mmsa.exporting.onnx.agreement import Logits, labels_of, run
from mmsa.exporting.onnx.samples import Sample
from mmsa.row_model import RowModel

_PRODUCTS = ["MatMul", "Gemm"]
BATCH_SIZES = (1, 32)


def write_int8(source: Path, target: Path) -> None:
    """Write the graph `source` with weights of matrix products in 8 bits to `target`.

    Weights use 7 of the 8 bits: on processors without VNNI, sums of two full products overflow 16
    bits (onnxruntime's documentation of quantization, "U8S8").
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises by the root logger
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=_PRODUCTS,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        root.setLevel(level)


def cost(
    full: Logits, int8: Logits, labels: NDArray[np.int64], temperature: float
) -> dict[str, Any]:
    """What 8 bits change in the predictions of the same n samples, whose classes are `labels`."""
    found = {"full": labels_of(full), "int8": labels_of(int8)}
    apart = np.abs(
        probabilities(full.astype(np.float64) / temperature)
        - probabilities(int8.astype(np.float64) / temperature)
    )
    return {
        "num_samples": len(labels),
        "labels_changed": int((found["full"] != found["int8"]).sum()),
        "accuracy": round(float((found["full"] == labels).mean()), 6),
        "accuracy_int8": round(float((found["int8"] == labels).mean()), 6),
        "probability_difference_mean": round(float(apart.max(axis=1).mean()), 6),
        "probability_difference_max": round(float(apart.max()), 6),
    }


def cpu_milliseconds(
    model: RowModel, sessions: Mapping[str, Any], samples: Sequence[Sample], *, repeats: int = 5
) -> dict[str, dict[str, float]]:
    """CPU milliseconds per sample of a forward pass: batch size -> torch and each session.

    Of CPU time, so that other work on the machine counts less; the least of `repeats` turns, in
    which all take the same batches one after the other. Tokenizing and decoding are not counted.
    """
    table: dict[str, dict[str, float]] = {}
    for size in BATCH_SIZES:
        inputs = model.inputs([samples[row % len(samples)] for row in range(size)])

        ways: dict[str, Callable[[], object]] = {"torch": partial(_forward, model, inputs)}
        ways |= {name: partial(run, session, inputs) for name, session in sessions.items()}
        least = {name: float("inf") for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                start = time.process_time()
                way()
                if turn:  # the first one makes buffers
                    least[name] = min(least[name], time.process_time() - start)
        table[str(size)] = {name: round(1000 * s / size, 3) for name, s in least.items()}
    return table


@torch.inference_mode()
def _forward(model: RowModel, inputs: Mapping[str, torch.Tensor]) -> object:
    return model.model(**inputs)
