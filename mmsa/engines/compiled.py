"""`torch.compile` of the encoders: lengths marked as variable, and what it does said aloud.

torch compiles a function again when an input or a setting changed that it had taken as fixed, and
after `torch._dynamo.config.recompile_limit` times (8) runs it uncompiled, with a line of its own
log at most. Under DDP the graph of an encoder is cut where a gradient bucket ends
(`optimize_ddp`), so that buckets are sent while the rest of the backward pass runs.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from mmsa.data.packed_texts import PackedTexts

logger = logging.getLogger("mmsa")

_DYNAMO = "torch._dynamo.convert_frame"  # the logger of what is compiled


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def mark_lengths(*tokens: Tensor | None) -> None:
    """Say that the second dimension of these (B, T) changes from call to call, so that the first
    length is not compiled for alone."""
    for one in tokens:
        if one is not None:
            torch._dynamo.maybe_mark_dynamic(one, 1)


def mark_rows(packed: PackedTexts | None) -> None:
    """Say that the number of packed rows and their length change from call to call."""
    for one in packed or ():
        for dimension in range(one.dim()):
            torch._dynamo.maybe_mark_dynamic(one, dimension)


class CompileWatch(logging.Handler):
    """Counts compiled graphs and hears of functions that run uncompiled from now on.

    Does nothing unless `enabled`.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        super().__init__(logging.WARNING)
        self._enabled = enabled
        self._given_up: list[str] = []
        self._graphs = _graphs() if enabled else 0
        self._is_first = True
        self.recompiled = 0  # graphs of steps after the first one
        if enabled:
            logging.getLogger(_DYNAMO).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if "hit config." in said:
            self._given_up.append(" ".join(said.split("\nTo log all")[0].split()))

    def news(self, step: int) -> list[str]:
        """What happened since the last call, after step `step`; the first call is after the first
        step of this launch."""
        if not self._enabled:
            return []
        new = _graphs() - self._graphs
        self._graphs += new
        words = []
        if new and self._is_first:
            words.append(f"train.compile: {new} graph(s) compiled in the first step")
        elif new:
            self.recompiled += new
            words.append(
                f"train.compile: {new} graph(s) compiled again at step {step}, {self.recompiled} "
                "in all; TORCH_LOGS=recompiles says why"
            )
        self._is_first = False
        words += [
            f"train.compile: from step {step} on a function runs uncompiled, because it was "
            f"compiled too often ({one}). train.compile=false may be as fast"
            for one in self._given_up
        ]
        self._given_up = []
        return words

    def log_news(self, step: int) -> None:
        """Log the `news` after step `step`; what runs uncompiled as a warning."""
        for words in self.news(step):
            level = logging.WARNING if "uncompiled" in words else logging.INFO
            logger.log(level, "%s", words)

    def detach(self) -> None:
        """Hear no more."""
        logging.getLogger(_DYNAMO).removeHandler(self)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
