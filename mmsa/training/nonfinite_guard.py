"""The guard before the weights: no step is taken with a gradient that is not finite.

Decided on the device, so that the host need not wait for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsa.engines.engine import is_deepspeed
from mmsa.models.batchnorm import running_statistics
from mmsa.training.step_reports import StepReport
from mmsa.training.tracking import few

# A GradScaler begins at 2**16 and halves its scale at each overflow: more skipped steps in a row
# than this are no matter of the scale.
_SCALER_MAY_SKIP = 20


class NonfiniteGuard:
    """Sees each gradient's norm before the optimizer does.

    Fused Adam and AdamW leave weights, moments and step count as they are where their attribute
    `found_inf` is 1: it is how torch's GradScaler speaks to them. DeepSpeed leaves a step out
    itself whose gradient norm, over all ranks, is not finite, and reports the norm.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        accelerator: Accelerator,
        *,
        keep_statistics: bool,
    ) -> None:
        """`keep_statistics`: BatchNorm's running statistics go back with a step left out; without
        it they are those of a forward pass that may have had no finite values."""
        self._device = accelerator.device
        self._scaled = accelerator.scaler is not None
        self._engine_decides = is_deepspeed(accelerator)
        self._found_inf: Tensor | None = None
        self._in_a_row = torch.zeros((), device=accelerator.device)
        self._model = model if keep_statistics else None
        self._kept: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def begin_step(self) -> None:
        """Before the first forward pass of a step."""
        if self._model is not None:
            live = running_statistics(self._model)
            self._kept = {name: buffer.clone() for name, buffer in live.items()}

    @torch.no_grad()
    def judge(self, grad_norm: Tensor | float) -> Tensor:
        """Whether the step is left out because its gradient is not finite, as a bool scalar.

        Called before `optimizer.step()`; `grad_norm` is of the whole gradient, alike on all ranks,
        unscaled. Under a GradScaler (fp16), which leaves steps out by itself until its scale fits,
        only many overflows in a row are told.
        """
        nonfinite = ~torch.as_tensor(grad_norm, device=self._device).isfinite()
        if self._scaled:
            self._in_a_row = (self._in_a_row + 1) * nonfinite
            return self._in_a_row > _SCALER_MAY_SKIP
        if not self._engine_decides:  # which has taken the step, or left it out, by now
            self._found_inf = nonfinite.float()
        if self._model is not None:
            for name, buffer in running_statistics(self._model).items():
                buffer.copy_(torch.where(nonfinite, self._kept[name], buffer))
        return nonfinite

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._found_inf is not None:
            optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._found_inf is not None:
            self._found_inf = None
            del optimizer.found_inf  # type: ignore[attr-defined]


def nonfinite_in_words(report: StepReport, keys: list[str], in_a_row: int, newest: str) -> str:
    """What was met at a step, on which samples, and what to do."""
    rows = f", the {in_a_row}th such step in a row" if in_a_row > 1 else ""
    return (
        f"step {report.step} has loss {report.loss} and gradient norm {report.grad_norm}{rows}; "
        f"it has not changed the weights. Newest checkpoint: {newest}. Its samples: {few(keys)}. "
        "The same command would most likely meet it again: leave such steps out with "
        "train.on_nonfinite=skip, or begin a new run.dir with lower optim.*_lr or optim.clip_norm"
    )
