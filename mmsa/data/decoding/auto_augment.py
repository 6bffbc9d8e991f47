"""torchvision's random policies for training images, drawn by (seed, epoch, sample).

    rand_augment      a few operations of one strength (Cubuk et al., RandAugment, NeurIPS 2020)
    trivial_augment   one operation of a random strength (Müller and Hutter, ICCV 2021)

Both draw from torch's generator. Here it is seeded for each view and put back afterwards: any
worker of any rank makes the same view, and no other draw changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from mmsa.foundation.hashed_random import stream_key


@dataclass(frozen=True)
class AutoAugment:
    """A policy; `num_operations` and `magnitude` (0 to 30) are of `rand_augment` alone."""

    policy: Literal["rand_augment", "trivial_augment"]
    num_operations: int = 2
    magnitude: int = 9


def auto_augmented(
    view: Tensor,
    settings: AutoAugment,
    *,
    seed: int,
    epoch: int,
    sample: int,
    fill: tuple[float, ...],
) -> Tensor:
    """A view uint8 (3, S, S) after the random operations of a policy, in the same form.

    `sample` is the hash of the key. `fill` is the colour, 0 to 1, of what a rotation or a shift
    leaves empty.
    """
    transform = _transform(settings, tuple(round(255 * min(1.0, max(0.0, part))) for part in fill))
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: `torch.manual_seed` would seed those of GPUs too.
        torch.default_generator.manual_seed(stream_key("auto_augment", seed, epoch, sample) >> 1)
        return transform(view)


@lru_cache(maxsize=4)
def _transform(settings: AutoAugment, fill: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    from torchvision import transforms  # slow to import, and needed by few runs

    options: dict[str, Any] = {"fill": list(fill)}
    if settings.policy == "trivial_augment":
        found: Callable[[Tensor], Tensor] = transforms.TrivialAugmentWide(**options)
        return found
    found = transforms.RandAugment(settings.num_operations, settings.magnitude, **options)
    return found
