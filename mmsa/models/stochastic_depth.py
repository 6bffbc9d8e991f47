"""Stochastic depth (`model.image_encoder.drop_path`): residual branches left out at random.

Huang et al. (ECCV 2016, equation 4): the probability rises linearly from 0 in the first block to
the given one in the last. Only training leaves branches out.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmsa.errors import UserError
from mmsa.models.encoders import IMAGE_SECTION


def set_drop_path(body: nn.Module, rate: float, *, name: str) -> None:
    """Give the blocks of `body`, a network of torchvision's parts, probabilities up to `rate`.

    Raises `UserError` where it has no residual branches that can be left out.
    """
    from torchvision.ops import StochasticDepth

    branches = [module for module in body.modules() if isinstance(module, StochasticDepth)]
    if not branches:
        raise _without(rate, name)
    for number, branch in enumerate(branches):
        branch.p = rate * number / max(1, len(branches) - 1)


def set_drop_path_of(architecture: Any, rate: float | None, *, name: str) -> None:
    """Write `rate` into a configuration of transformers, or into its vision part; None: leave it.

    transformers distributes it over the blocks. Raises `UserError` where the type has none.
    """
    if rate is None:
        return
    of_images = getattr(architecture, "vision_config", architecture)
    if not hasattr(of_images, "drop_path_rate"):
        raise _without(rate, name)
    of_images.drop_path_rate = rate


def _without(rate: float, name: str) -> UserError:
    return UserError(
        f"{IMAGE_SECTION}.drop_path={rate}, but {name} has no stochastic depth; take the key out, "
        "or use an encoder that has it (convnext_tiny, hf: ConvNeXt, Swin, DINOv2)"
    )
