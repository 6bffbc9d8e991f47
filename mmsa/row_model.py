"""A model on one device, and what it makes of rows that are ready: prepared text and view."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mmsa.data.decoding import image_views
from mmsa.data.manifest import MODALITIES, Modality
from mmsa.data.packed_texts import PackedTexts, TextLayout
from mmsa.engines.cpu_lanes import twin_of
from mmsa.engines.gpu_kernels import strict_float32
from mmsa.engines.gpu_texts import text_layout
from mmsa.export import Export, load_model, load_tokenizer_of


class ModelRow(Protocol):
    """One row as a model reads it; None for what it does not have or the model does not read."""

    @property
    def text(self) -> str | None:
        """In packed form."""

    @property
    def view(self) -> torch.Tensor | None:
        """uint8 (3, S, S)."""


class RowModel:
    """The model of an export with its tokenizer. Its weights do not change."""

    def __init__(self, export: Export, device: torch.device) -> None:
        self.export = export
        self.device = device
        self.model = load_model(export).to(device)
        self.may_lack = export.may_lack
        self._tokenizer = load_tokenizer_of(export)
        self._layout = text_layout(self.model, export.config.gpu, device.type)
        reads: dict[Modality, bool] = {
            "text": self._tokenizer is not None,
            "image": export.preprocessing.image is not None,
        }
        self.reads = tuple(name for name in MODALITIES if reads[name])

    def twin(self) -> RowModel:
        """The same model for another thread, to be used at the same time: its parameters are
        the same tensors."""
        other = copy.copy(self)
        other.model = twin_of(self.model)
        return other

    def inputs(self, rows: Sequence[ModelRow]) -> dict[str, torch.Tensor]:
        """What the model is called with for n rows, which are one batch: the names are those of
        `SentimentModel.forward`, and each tensor has n rows. A row without a modality has an empty
        text or a black image, and False in `text_present` or `image_present`. Texts are padded."""
        return self._inputs(rows, TextLayout())[0]

    @torch.inference_mode()
    def logits(self, rows: Sequence[ModelRow]) -> NDArray[np.float32]:
        """The logits (n, C) of n rows, which are one batch; (n, 1) where two classes share one."""
        inputs, packed = self._inputs(rows, self._layout)
        with strict_float32():  # as in evaluation
            output = self.model(**inputs, packed=packed)
        logits: NDArray[np.float32] = output.float().cpu().numpy()
        return logits

    def _inputs(
        self, rows: Sequence[ModelRow], layout: TextLayout
    ) -> tuple[dict[str, torch.Tensor], PackedTexts | None]:
        """`inputs`, and the texts packed where `layout` packs them."""
        inputs: dict[str, torch.Tensor] = {}
        packed: PackedTexts | None = None
        if self._tokenizer is not None:
            texts = [row.text or "" for row in rows]
            ids, mask, packed = layout.tokens_of(self._tokenizer, texts)
            inputs["input_ids"] = ids.to(self.device)
            inputs["attention_mask"] = mask.to(self.device)
            packed = None if packed is None else packed.to(self.device)
        preprocessing = self.export.preprocessing
        if preprocessing.image is not None:
            side = preprocessing.image.image_size_px
            empty = torch.zeros(3, side, side, dtype=torch.uint8)  # its features do not count
            views = (empty if row.view is None else row.view for row in rows)
            inputs["images"] = image_views.stacked(views, len(rows), preprocessing).to(self.device)
        has = {
            "text": [row.text is not None for row in rows],
            "image": [row.view is not None for row in rows],
        }
        for name in self.may_lack:
            inputs[f"{name}_present"] = torch.tensor(has[name]).to(self.device)
        return inputs, packed
