"""What is due after a step, as a function of where a run stands."""

from __future__ import annotations

from mmsa.config import Config
from mmsa.training.run import Run


def owes_validation(config: Config, run: Run) -> bool:
    """Whether the run was stopped between a step and the validation that was due after it."""
    step = run.progress.step
    due = is_due(step, config.train.validate_every_steps, run)
    return due and run.progress.validated_step < step


def is_due(step: int, every: int | None, run: Run) -> bool:
    """Whether a thing is due after `step`: every so many (None: each epoch), and at the end."""
    return step % (every or run.plan.steps_per_epoch) == 0 or step == run.num_steps
