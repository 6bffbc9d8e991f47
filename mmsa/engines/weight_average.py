"""An exponential moving average of the trained weights (`train.ema`), for every engine.

After step t the average is the mean of the weights of steps 1 to t with shares that fall by `decay`
from each step to the one before, and add up to 1:

    average_t = average_(t-1) + share_t (weights_t - average_(t-1)),   share_t = (1 - d) / (1 - d^t)

This is Adam's average with its correction for the start (Kingma and Ba, ICLR 2015, sections 3 and
7.2), so that the initial weights have no share in it and a short run needs no smaller decay. The
share depends on the step alone. BatchNorm's running statistics are averaged in the same way, on
each rank its own.

Each rank averages what it keeps: whole parameters, under ZeRO its partitions. So an update is one
pass over memory, without communication.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmsa.engines.zero_partitions import publish, trained_storage
from mmsa.models.batchnorm import running_statistics


class WeightAverage:
    """The average of the weights of the bare `model`, which the engine has wrapped.

    `of` is the average of each tensor in which this rank keeps trained weights, `statistics` that
    of each running statistic by its name in the state dict; float32.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, accelerator: Accelerator, decay: float
    ) -> None:
        assert 0 < decay < 1, decay
        self._model, self._optimizer, self._accelerator = model, optimizer, accelerator
        self._decay = decay
        self.of: dict[Tensor, Tensor] = {
            stored: stored.detach().clone() for stored in trained_storage(model, optimizer)
        }
        self.statistics: dict[str, Tensor] = {
            name: buffer.detach().clone() for name, buffer in self._live_statistics().items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step`, from 1.

        A step that was skipped counts with the weights as they are.
        """
        share = (1 - self._decay) / (1 - self._decay**step)
        live = self._live_statistics()
        averages = [*self.of.values(), *self.statistics.values()]
        weights = [*self.of, *(live[name] for name in self.statistics)]
        if averages:
            torch._foreach_lerp_(averages, weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages as its weights, and `of` holds its own; afterwards its
        own again, bit for bit. A collective: all ranks enter and leave it together.

        BatchNorm's statistics are not touched.
        """
        engine = (self._model, self._optimizer, self._accelerator)
        self._exchange()
        publish(*engine)
        try:
            yield
        except BaseException:
            # The run ends. No collective: this may be the only rank that failed.
            self._exchange()
            raise
        self._exchange()
        publish(*engine)

    @torch.no_grad()
    def _exchange(self) -> None:
        # By content, one tensor at a time: engines and compiled code keep the places in memory.
        for stored, average in self.of.items():
            own = stored.detach().clone()
            stored.copy_(average)
            average.copy_(own)

    def _live_statistics(self) -> dict[str, Tensor]:
        """Without the numbers of batches, which are integers."""
        statistics = running_statistics(self._model)
        return {name: one for name, one in statistics.items() if one.is_floating_point()}
