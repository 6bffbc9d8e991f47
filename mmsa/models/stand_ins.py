"""Stand-ins: what a fusion head gets in place of the features of a missing modality.

A sample may have no text or no image, or lose one in training (`data.modality_dropout`). Its
encoder runs all the same, because distributed training waits for the gradients of every weight, and
its features are replaced by a learned vector (modality dropout with a learnable stand-in: the
22-set study of late fusion, arXiv 2412.16243). It starts at 0 and takes no random number.

Shapes: B batch, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmsa.config import ModelConfig
from mmsa.data.manifest import MODALITIES, Modality
from mmsa.foundation.registry import section_of
from mmsa.models.fusion import FUSIONS, FusionHead
from mmsa.models.fusion.sequences import Features, FeatureSequence


class StandIn(nn.Module):
    """The vector (D,) that takes the place of the features of one missing modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, features: Features, present: Tensor | None) -> Features:
        """`features` (B, D), with the vector in the rows where `present` (B,) bool is False.

        A sequence becomes one row, the vector. None: all are present. The vector is part of the
        result in any case, so that its gradient is 0 and not absent on a rank whose samples are all
        complete.
        """
        rows = features.rows if isinstance(features, FeatureSequence) else features
        if present is None:
            present = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        if isinstance(features, FeatureSequence):
            return features.where_present(present, self.vector)
        return torch.where(present[:, None], features, self.vector.to(features.dtype))


def modalities_of(head: type[FusionHead]) -> tuple[Modality, ...]:
    """The modalities that a fusion head reads."""
    reads = {"text": head.uses_text, "image": head.uses_image}
    return tuple(name for name in MODALITIES if reads[name])


def chosen_stand_ins(config: ModelConfig) -> tuple[Modality, ...]:
    """The modalities with a stand-in, in the order of `MODALITIES`.

    `auto` means none here: a new run replaces it by what its data and its dropout need, before the
    model is built.
    """
    chosen: Iterable[Modality] = () if config.stand_ins == "auto" else config.stand_ins
    return tuple(name for name in MODALITIES if name in chosen)


def stand_in_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: dropout and stand-ins against the head and each other.

    Wrong types are reported by the configuration itself.
    """
    name = str(section_of(section_of(raw, "model"), "fusion").get("name", "concat"))
    if name not in FUSIONS:
        return []  # reported by the head's own check
    reads = modalities_of(FUSIONS[name])
    chosen = section_of(raw, "model").get("stand_ins", "auto")
    dropout = section_of(section_of(raw, "data"), "modality_dropout")
    problems = []
    for modality in MODALITIES:
        share = dropout.get(modality, 0)
        if not isinstance(share, int | float) or not share > 0:
            continue
        if len(reads) < 2:
            problems.append(
                f"data.modality_dropout.{modality}={share} with model.fusion.name={name}, which "
                f"reads the {reads[0]} alone: nothing would be left of a sample. Use a head that "
                "reads both, or leave it at 0"
            )
        elif isinstance(chosen, list | tuple) and modality not in chosen:
            problems.append(
                f"data.modality_dropout.{modality}={share} needs a stand-in for a missing "
                f"{modality}, and model.stand_ins names none; add {modality} to it, or leave it at "
                "auto"
            )
    if isinstance(chosen, list | tuple):
        problems += [
            f"model.stand_ins names the {modality}, which model.fusion.name={name} does not read; "
            "leave it out"
            for modality in MODALITIES
            if modality in chosen and modality not in reads
        ]
    return problems
