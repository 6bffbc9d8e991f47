"""How a label of the text and a label of the picture become one label."""

from __future__ import annotations

from mmsa.labels import LABEL_NAMES

FUSION_RULE = "fusion"  # the manifest's `label_rule`


def fuse(text_label: str, image_label: str) -> str | None:
    """The label of a pair by the fusion rule of Xu and Mao (CIKM 2017); None drops the pair.

    Equal labels stay; one neutral gives way to the other; positive against negative conflict.
    """
    assert text_label in LABEL_NAMES, text_label
    assert image_label in LABEL_NAMES, image_label
    if text_label == image_label or image_label == "neutral":
        return text_label
    if text_label == "neutral":
        return image_label
    return None
