"""Optimizer and learning rates.

The learning rate is a pure function of the step, written into the parameter groups before each
step. A scheduler prepared by Accelerate would step once per process at each optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from mmsa.config import OptimConfig
from mmsa.foundation.hashed_random import stream_key
from mmsa.models.layer_rates import layer_shares
from mmsa.models.model import SentimentModel, parameter_groups


def optimizer_of(model: SentimentModel, config: OptimConfig) -> Optimizer:
    """The optimizer of a run over what is trained of the bare `model`."""
    shares = layer_shares(model, config.layer_decay)
    return build_optimizer(parameter_groups(model), config, shares)


def build_optimizer(
    groups: Mapping[str, Sequence[tuple[str, nn.Parameter]]],
    config: OptimConfig,
    shares: Mapping[str, float] | None = None,
) -> Optimizer:
    """AdamW or Adam over the trained parameters, named, of the parts `text`, `image` and `head`.

    Each part has its own peak learning rate. `shares` gives parameters, by their names, a share of
    it (mmsa/models/layer_rates.py); the others have all of it. A group keeps the product as
    `peak_lr`. Weight decay skips norms and biases, that is, parameters of fewer than two
    dimensions.
    """
    peaks = {"text": config.text_lr, "image": config.image_lr, "head": config.head_lr}
    parameter_groups = []
    for part, share, members in _by_share(groups, shares or {}):
        decayed = [parameter for parameter in members if parameter.ndim >= 2]
        others = [parameter for parameter in members if parameter.ndim < 2]
        for parameters, decay in ((decayed, config.weight_decay), (others, 0.0)):
            if parameters:
                parameter_groups.append(
                    {
                        "params": parameters,
                        "part": part,
                        "peak_lr": peaks[part] * share,
                        "lr": peaks[part] * share,
                        "weight_decay": decay,
                    }
                )
    optimizer = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # One kernel for all parameters: on CPU a fifth of the plain loop's time.
    return optimizer(parameter_groups, betas=config.betas, eps=config.eps, fused=True)


def _by_share(
    groups: Mapping[str, Sequence[tuple[str, nn.Parameter]]], shares: Mapping[str, float]
) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
    """(part, share of its rate, parameters), the largest share of a part first."""
    for part, named in groups.items():
        by_share: dict[float, list[nn.Parameter]] = {}
        for name, parameter in named:
            by_share.setdefault(shares.get(name, 1.0), []).append(parameter)
        for share in sorted(by_share, reverse=True):
            yield part, share, by_share[share]


def warmup_steps(config: OptimConfig, num_steps: int) -> int:
    """Steps of warm-up: as set, or a tenth of all steps."""
    return num_steps // 10 if config.warmup_steps is None else config.warmup_steps


def learning_rate_share(step: int, num_steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`, as a share of its peak.

    Linear warm-up reaches the peak at step `warmup_steps`; then cosine (Loshchilov and Hutter,
    ICLR 2017, without restarts) or linear decay towards 0 at step `num_steps`.
    """
    warmup = warmup_steps(config, num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    if config.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: Optimizer, share: float) -> dict[str, float]:
    """Write `share` x peak into each parameter group; returns the largest rate of each part."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
        rates[group["part"]] = max(group["lr"], rates.get(group["part"], 0.0))
    return rates


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one optimizer step of one rank; the draws continue over its micro-steps."""
    torch.manual_seed(stream_key("dropout", seed, step, rank) >> 1)
