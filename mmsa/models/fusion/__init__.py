"""Fusion heads: features of one or two modalities -> logits.

`head` is what a head is. `vectors` are the heads that take one row per modality, and `gated` is a
gate between two such rows. `cross_attention` and `bottleneck`, made of `attention`, take every
token, patch or position (`sequences`). `build` makes the head of a configuration. Other modules
import the public names from here: so all heads are registered.
"""

# isort: off
# Imported to register the heads of this package, in the order in which messages list them.
import mmsa.models.fusion.vectors
import mmsa.models.fusion.cross_attention
import mmsa.models.fusion.gated
import mmsa.models.fusion.bottleneck  # noqa: F401

# isort: on
from mmsa.models.fusion.build import build_fusion, fusion_class, fusion_problems
from mmsa.models.fusion.head import (
    FUSIONS,
    FusionHead,
    FusionSettings,
    register_fusion,
)

__all__ = [
    "FUSIONS",
    "FusionHead",
    "FusionSettings",
    "build_fusion",
    "fusion_class",
    "fusion_problems",
    "register_fusion",
]
