"""The model as an ONNX graph, by torch's own exporter (`torch.onnx.export`, with dynamo).

Inputs, of those that the model reads (B batch, T tokens, S side in pixels):

    input_ids, attention_mask    int64 (B, T)
    images                       uint8 (B, 3, S, S), RGB; normalisation is part of the graph
    text_present, image_present  bool (B,), of the modalities that a sample may lack

The output is `logits` (B, C) in float32, without a temperature; C is 1 where two classes share one
logit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsa.errors import UserError, first_line
from mmsa.models.model import SentimentModel

OUTPUT_NAME = "logits"
OPSET = 20
_MOST_ROWS = 2**20  # an upper bound, which the exporter wants


def write_graph(
    model: SentimentModel, inputs: Mapping[str, Tensor], path: Path, *, max_tokens: int | None
) -> None:
    """Write `model`, in eval mode and on the CPU, as an ONNX file at `path`.

    `inputs` are those of one call, of at least two rows and tokens: the exporter takes a size of 1
    for a constant. Raises `UserError` where the exporter cannot export this model, or not with any
    batch and length.
    """
    with _quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                model,
                (),
                kwargs=dict(inputs),
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                dynamic_shapes=_free_sizes(inputs, max_tokens),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # it raises whatever it meets in the model's code
            raise UserError(
                "torch's exporter cannot turn this model into ONNX "
                f"({first_line(error, with_type=True)}). Serve it with torch (python -m mmsa "
                "serve), or train with another encoder"
            ) from None
        program.save(str(path))


def _free_sizes(inputs: Mapping[str, Tensor], max_tokens: int | None) -> dict[str, Any]:
    """Per input: which of its sizes may be any."""
    batch = torch.export.Dim("batch", min=1, max=_MOST_ROWS)
    tokens = torch.export.Dim("tokens", min=1, max=max_tokens or 1)
    of_tokens = ("input_ids", "attention_mask")
    return {name: {0: batch, 1: tokens} if name in of_tokens else {0: batch} for name in inputs}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own progress; its errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
