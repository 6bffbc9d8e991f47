"""Trying a network without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Inside, `module` is in eval mode: no dropout, which would draw from the generator that seeds
    weights. Afterwards its mode is what it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
