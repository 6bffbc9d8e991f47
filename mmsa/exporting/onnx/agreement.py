"""The ONNX file beside torch: the same logits on real samples, or no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.exporting.onnx.samples import Sample, batches
from mmsa.row_model import RowModel

TOLERANCE = 1e-4  # of a logit, absolute

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How far two results of the same n samples are apart, (n, C) each."""

    num_samples: int
    logit_difference: float  # the largest
    labels_changed: int


def open_session(path: Path, num_threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU. Raises `UserError` where it does not open."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own types
        raise UserError(
            f"onnxruntime does not open the file that was written ({' '.join(str(error).split())});"
            " another version of onnxruntime may"
        ) from None


def require_free_sizes(session: Any) -> None:
    """Raise `UserError` where the graph takes one batch or one length alone: torch's exporter may
    make a constant of what the model's code asks the size of, and says nothing."""
    for one in session.get_inputs():
        free = one.shape[:2] if len(one.shape) == 2 else one.shape[:1]
        if any(isinstance(size, int) for size in free):
            raise UserError(
                f"torch's exporter fixed the sizes of '{one.name}' to {list(one.shape)}, so the "
                "graph would take no other batch or text length. It was not kept. Serve the model "
                "with torch (python -m mmsa serve)"
            )


def run(session: Any, inputs: Mapping[str, Any]) -> Logits:
    """The logits (n, C) of the inputs of one call, tensors or arrays.

    Raises `UserError` where onnxruntime cannot compute them.
    """
    try:
        [logits] = session.run(None, {name: np.asarray(one) for name, one in inputs.items()})
    except Exception as error:  # of onnxruntime's own types
        raise UserError(
            f"onnxruntime cannot compute the graph ({' '.join(str(error).split())[:200]}); serve "
            "the model with torch (python -m mmsa serve)"
        ) from None
    found: Logits = logits
    return found


def logits_of_both(
    model: RowModel, session: Any, samples: Sequence[Sample]
) -> tuple[Logits, Logits]:
    """(torch's logits, those of `session`) of the samples, (n, C) each, batch by batch."""
    pairs = [(model.logits(batch), run(session, model.inputs(batch))) for batch in batches(samples)]
    ours, theirs = zip(*pairs, strict=True)
    return np.concatenate(ours), np.concatenate(theirs)


def agreement(ours: Logits, theirs: Logits) -> Agreement:
    """How far two results of the same samples are apart."""
    changed = labels_of(ours) != labels_of(theirs)
    return Agreement(len(ours), float(np.abs(ours - theirs).max()), int(changed.sum()))


def labels_of(logits: Logits) -> NDArray[np.int64]:
    """The predicted classes (n,) of logits (n, C); of one logit, whether it is above 0."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.int64)
    return logits.argmax(axis=1)


def require_agreement(found: Agreement) -> None:
    """Raise `UserError` where the ONNX file does not give torch's logits."""
    if not found.logit_difference <= TOLERANCE:  # NaN too
        raise UserError(
            f"the ONNX file does not agree with torch: logits of {found.num_samples} validation "
            f"samples differ by up to {found.logit_difference:.2g} (at most {TOLERANCE:g} is "
            f"allowed), and {found.labels_changed} labels change. It was not kept. Serve the model "
            "with torch (python -m mmsa serve)"
        )
