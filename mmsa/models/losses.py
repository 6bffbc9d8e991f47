"""Losses: logits and targets -> one number per sample.

A loss is a class with its own `Settings`, registered by `register_loss`, as fusion heads are. It
also decides how many outputs the model has.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmsa.config import LossConfig, ModelConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import PartSettings, Registry, nearest, section_of, settings_problems

_LEAST_REST = 1e-7  # of float32, whose numbers near 1 are so far apart


class LossSettings(PartSettings):
    """Base of a loss's own settings: what is under `model.loss` next to the name."""


class Loss:
    """The loss of each sample, weighted but not averaged.

    The caller divides the sum by the number of real samples of the global batch
    (docs/architecture.md), never by a sum of weights.
    """

    name: ClassVar[str]  # set by `register_loss`
    Settings: ClassVar[type[LossSettings]] = LossSettings
    weights_classes: ClassVar[bool] = False  # by itself: `model.class_weights` must be none

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def num_outputs(self, num_classes: int) -> int:
        """The number of logits: `num_classes`, or 1 for two classes told apart by a sigmoid.

        Raises `UserError` for a number of classes that the loss cannot tell apart.
        """
        return num_classes

    def class_weights(self, class_counts: Sequence[int]) -> Tensor | None:
        """The weights (C,) that the loss gives the classes by itself; None where it gives none.

        `class_counts` (C) are those of the training split.
        """
        return None

    def per_sample(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """`logits` (B, num_outputs) float32 -> losses (B,) float32.

        `targets` are labels (B,) int64, or soft targets (B, C) that sum to 1. `class_weights` (C,)
        multiply the loss of their class. `label_smoothing` e moves e of the target evenly to all
        classes.
        """
        raise NotImplementedError


LOSSES: Registry[type[Loss]] = Registry("loss")
register_loss = LOSSES.register  # the loss becomes `model.loss: NAME`


@register_loss("cross_entropy")
class CrossEntropy(Loss):
    """Softmax over the classes.

    With class weights each class's share of a smoothed target is weighted by that class's weight,
    as in `torch.nn.CrossEntropyLoss`.
    """

    def per_sample(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        return functional.cross_entropy(
            logits,
            targets,
            weight=class_weights,
            reduction="none",
            label_smoothing=label_smoothing,
        )


@register_loss("binary_cross_entropy")
class BinaryCrossEntropy(Loss):
    """One logit for the second of two classes. Class weights follow the sample's own class."""

    def num_outputs(self, num_classes: int) -> int:
        if num_classes != 2:
            raise UserError(
                f"model.loss=binary_cross_entropy needs two classes and there are {num_classes}; "
                "keep or merge two with data.classes, or use cross_entropy"
            )
        return 1

    def per_sample(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        assert logits.shape[1] == 1, logits.shape
        shares = functional.one_hot(targets, 2).float() if targets.ndim == 1 else targets  # (B, 2)
        target = shares[:, 1] * (1 - label_smoothing) + label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
        return losses if class_weights is None else losses * (shares @ class_weights)


class FocalSettings(LossSettings):
    gamma: float = Field(2.0, ge=0, description="how much less well-classified samples count")


@register_loss("focal")
class FocalLoss(Loss):
    """Cross-entropy times (1 - p) ** gamma for each class (Lin et al., ICCV 2017, equations 4, 5).

    Their alpha is `model.class_weights`. A soft or smoothed target has its share of each class's
    term. With gamma 0 it is cross-entropy.
    """

    Settings = FocalSettings

    def per_sample(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        num_classes = logits.shape[1]
        shares = targets
        if targets.ndim == 1:
            shares = functional.one_hot(targets, num_classes).to(logits.dtype)
        shares = shares * (1 - label_smoothing) + label_smoothing / num_classes  # (B, C)
        if class_weights is not None:
            shares = shares * class_weights
        log_p = functional.log_softmax(logits, dim=1)
        # Above 0, where a power below 1 would have an infinite gradient.
        rest = (-torch.expm1(log_p)).clamp(min=_LEAST_REST)  # 1 - p
        return -(shares * rest**self.settings.gamma * log_p).sum(dim=1)


class ClassBalancedSettings(FocalSettings):
    beta: float = Field(0.999, ge=0, lt=1, description="0: no weights; towards 1: by frequency")
    gamma: float = Field(0.0, ge=0, description="as of focal; 0: cross-entropy")


@register_loss("class_balanced")
class ClassBalancedLoss(FocalLoss):
    """Cross-entropy or focal loss, weighted by effective numbers (Cui et al., CVPR 2019).

    A class of n samples has an effective number of (1 - beta^n) / (1 - beta) (equation 2). Weights
    are inverse to it, and their sum is the number of classes (section 4).
    """

    Settings = ClassBalancedSettings
    weights_classes = True

    def class_weights(self, class_counts: Sequence[int]) -> Tensor:
        counts = torch.tensor(class_counts, dtype=torch.float64)
        present = counts > 0  # a class without samples has the weight of one sample
        effective = 1 - self.settings.beta ** counts.clamp(min=1)
        weights = 1 / effective
        return (weights * present.sum() / weights[present].sum()).float()


def loss_class(choice: str | LossConfig) -> type[Loss]:
    """The class of a configured loss; `UserError` with the nearest name where there is none."""
    name = choice if isinstance(choice, str) else choice.name
    if name not in LOSSES:
        raise UserError(_unknown_loss(name))
    return LOSSES[name]


def build_loss(choice: str | LossConfig) -> Loss:
    """The loss of `model.loss`; `UserError` for an unknown name or settings that do not fit."""
    found = loss_class(choice)
    values = {} if isinstance(choice, str) else choice.settings
    problems = _settings_problems(found, values)
    if problems:
        raise UserError(one_or_many(problems, where="model.loss"))
    return found(found.Settings(**values))


def num_outputs(config: ModelConfig, num_classes: int) -> int:
    """How many logits the model needs for its loss; `UserError` for a number that has no use."""
    loss = build_loss(config.loss)
    number = loss.num_outputs(num_classes)
    if number != num_classes and (number, num_classes) != (1, 2):
        raise UserError(
            f"the loss {loss.name} wants {number} outputs for {num_classes} classes; probabilities "
            "need one output for each class, or one for two classes"
        )
    return number


def loss_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: the loss's name and its own settings."""
    chosen = section_of(raw, "model").get("loss", ModelConfig().loss)
    values = {} if not isinstance(chosen, dict) else {**chosen}
    name = chosen if not isinstance(chosen, dict) else values.pop("name", LossConfig().name)
    if not isinstance(name, str):
        return []  # the configuration's own check reports it
    if name not in LOSSES:
        return [_unknown_loss(name)]
    problems = _settings_problems(LOSSES[name], values)
    if LOSSES[name].weights_classes and section_of(raw, "model").get("class_weights") == "balanced":
        problems.append(
            f"model.class_weights=balanced with model.loss={name}, which weights the classes "
            "itself; set one of the two, model.class_weights=none or another loss"
        )
    return problems


def _unknown_loss(name: str) -> str:
    return f"model.loss={name!r} is not a loss; {nearest(name, LOSSES)}"


def _settings_problems(loss: type[Loss], values: dict[str, Any]) -> list[str]:
    return settings_problems(
        loss.Settings, values, section="model.loss", part=f"the loss {loss.name}"
    )
