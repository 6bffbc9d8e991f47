"""No step is taken with a gradient that is not finite: skip it, count it, give up when it repeats.

Decided on the device, so that the host need not wait for the gradient. The other places that such a
step touches: `train_step` asks the guard, a step report carries the flag to all ranks, and the
tracker writes the skipped step down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mmsa.engines.engine import is_deepspeed
from mmsa.errors import AgreedError
from mmsa.models.batchnorm import running_statistics
from mmsa.training.checkpoints.checkpoint import newest_checkpoint
from mmsa.training.step_reports import StepReport
from mmsa.training.tracking import few

MOST_SKIPPED_IN_A_ROW = 50  # beyond, the run would only waste its time
# A GradScaler starts at 2**16 and halves its scale at each overflow: more skipped steps in a row
# than this are not the scale's doing.
_SCALER_MAY_SKIP = 20


class NonfiniteGuard:
    """Sees the norm of each gradient before the optimizer does.

    Fused Adam and AdamW leave weights, moments and step count alone where their attribute
    `found_inf` is 1: that is how torch's GradScaler talks to them. DeepSpeed itself skips a step
    whose gradient norm, over all ranks, is not finite, and reports the norm.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        accelerator: Accelerator,
        *,
        on_nonfinite: Literal["stop", "skip"],
    ) -> None:
        """`on_nonfinite`: end the run at the first such step, or skip it.

        Under "skip" the running statistics of BatchNorm return to what they were before the step;
        under "stop" they stay those of a forward pass that may have had no finite values.
        """
        self._device = accelerator.device
        self._scaled = accelerator.scaler is not None
        self._engine_decides = is_deepspeed(accelerator)
        self._on_nonfinite = on_nonfinite
        self._found_inf: Tensor | None = None
        self._overflows_in_a_row = torch.zeros((), device=accelerator.device)
        self._skipped_in_a_row, self._last_skipped = 0, -1
        self._model = model if on_nonfinite == "skip" else None
        self._statistics: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def begin_step(self) -> None:
        """Remember what a skipped step has to give back; before its first forward pass."""
        if self._model is not None:
            live = running_statistics(self._model)
            self._statistics = {name: buffer.clone() for name, buffer in live.items()}

    @torch.no_grad()
    def skip_if_nonfinite(self, grad_norm: Tensor | float) -> Tensor:
        """Make the next `optimizer.step()` do nothing if the gradient is not finite.

        `grad_norm` is of the whole gradient, unscaled, the same on all ranks. Returns whether the
        step is skipped, as a bool scalar on the device. Under a GradScaler (fp16), which skips
        steps by itself until its scale fits, only many overflows in a row count; each gives back
        what `begin_step` remembered.
        """
        nonfinite = ~torch.as_tensor(grad_norm, device=self._device).isfinite()
        if self._model is not None:
            for name, buffer in running_statistics(self._model).items():
                buffer.copy_(torch.where(nonfinite, self._statistics[name], buffer))
        if self._scaled:
            self._overflows_in_a_row = (self._overflows_in_a_row + 1) * nonfinite
            return self._overflows_in_a_row > _SCALER_MAY_SKIP
        if not self._engine_decides:  # DeepSpeed has taken or skipped the step by now
            self._found_inf = nonfinite.float()
        return nonfinite

    def count_skipped(self, report: StepReport, keys: Sequence[str], run_dir: Path) -> None:
        """Count a skipped step; raise `AgreedError` where the run must not continue.

        All ranks hold the same `report` and `keys` (the samples of the step), so all raise alike.
        """
        follows = report.step == self._last_skipped + 1
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if follows else 1
        self._last_skipped = report.step
        if self._on_nonfinite == "skip" and self._skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        in_a_row = self._skipped_in_a_row
        repeated = f", the {in_a_row}th such step in a row" if in_a_row > 1 else ""
        newest = newest_checkpoint(run_dir)
        raise AgreedError(
            f"step {report.step} has loss {report.loss} and gradient norm "
            f"{report.grad_norm}{repeated}; it has not changed the weights. Newest checkpoint: "
            f"{'none yet' if newest is None else newest.name}. Its samples: {few(keys)}. The same "
            "command would most likely fail there again: skip such steps with "
            "train.on_nonfinite=skip, or start a new run.dir with lower optim.*_lr or "
            "optim.clip_norm"
        )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._found_inf is not None:
            optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._found_inf is not None:
            self._found_inf = None
            del optimizer.found_inf  # type: ignore[attr-defined]
