"""mmsa: a distributed multi-GPU training toolkit for multimodal sentiment analysis.

import mmsa
result = mmsa.load("runs/first/best").predict(texts, images)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from mmsa.predictor import Predictor

__all__ = ["load"]


def load(export: str | os.PathLike[str], *, device: str | None = None) -> Predictor:
    """Open an export (or a run directory: its best) for prediction.

    `ORG/NAME` or `ORG/NAME@REVISION` that is no path is an export on the Hugging Face hub.

    `device` is a torch device, by default the first GPU, else the CPU. Raises
    `mmsa.errors.UserError` where there is no export, or its model has parts of modules that have
    not been imported.
    """
    from mmsa.predictor import load_predictor

    return load_predictor(export, device=device)
