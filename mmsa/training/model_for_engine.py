"""What a model needs before and after an engine wraps it, so that all engines train the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmsa.config import Config, GpuConfig
from mmsa.data.packed_texts import PackedTexts
from mmsa.data.plan import BatchPlan
from mmsa.data.stream import Batch
from mmsa.engines.compiled import mark_lengths, mark_rows
from mmsa.engines.engine import precision
from mmsa.engines.gpu_kernels import dtype_of_products
from mmsa.engines.gpu_texts import choose_packed_attention
from mmsa.engines.hardware import device_type, own_gpus
from mmsa.errors import UserError
from mmsa.models import packed_attention
from mmsa.models.batchnorm import frozen_statistics
from mmsa.models.encoders import lay_out
from mmsa.models.fusion.attention import Attention
from mmsa.models.model import SentimentModel
from mmsa.process.runtime import World

logger = logging.getLogger("mmsa")

_TOKENS = 4  # of the rehearsal: as few as every text encoder takes


def give_packed_attention(model: SentimentModel, gpu: GpuConfig, accelerator: Accelerator) -> None:
    """Choose the attention of packed texts for this launch, and log it; before the engine wraps
    the model. A warning says that one which should work on this GPU does not."""
    dtype = dtype_of_products(precision(accelerator))
    chosen = choose_packed_attention(model, gpu, accelerator.device, dtype)
    logger.log(logging.WARNING if chosen.fell_back else logging.INFO, "texts: %s", chosen.words)


def adapt_to_launch(model: SentimentModel, config: Config, *, deepspeed: bool) -> None:
    """Synchronised BatchNorm and compilation, in place: the names of tensors do not change.

    Before the optimizer is built and the engine wraps the model.
    """
    if deepspeed and model.image_encoder is not None:
        # DeepSpeed sends and cuts the bytes of each weight in memory order.
        lay_out(model.image_encoder.body, torch.contiguous_format)
    if config.model.image_encoder.batch_norm == "sync":
        _synchronise_batchnorm(model)
    if config.train.compile:
        # Before the encoders are called: what is compiled cannot say it itself.
        model.register_forward_pre_hook(_mark_dynamic)
        for encoder in (model.text_encoder, model.image_encoder):
            if encoder is not None:
                # `Module.compile` compiles the call; torch.compile would rename every tensor.
                encoder.compile()


def _mark_dynamic(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    """What changes from call to call of the model with these positional `inputs`."""
    mark_lengths(*inputs[:2])
    for one in inputs:
        if isinstance(one, PackedTexts):
            mark_rows(one)


@contextmanager
def statistics_for(
    model: SentimentModel, config: Config, batch: Batch, plan: BatchPlan, step: int
) -> Iterator[None]:
    """Inside, BatchNorm layers normalise by running statistics where a micro-batch is too small.

    Rows of weight 0, or one row of several, must not reach a BatchNorm in training mode; nor must a
    single image of several rows, or the black images of rows without one, in the image encoder.
    Synchronised layers do so in all micro-batches of `step`, on all ranks, or in none.
    """
    few = min(2, plan.micro_batch_size)
    num_real, num_images = batch["num_real"], batch["num_images"]
    if config.model.image_encoder.batch_norm == "sync":
        # A layer in training mode waits for that of each other rank, so all ranks decide by what
        # all know. No image is missing (`settle_stand_ins`).
        num_real = num_images = plan.smallest_micro_batch(step)
    with frozen_statistics(model, num_real < few):
        if model.image_encoder is None:
            yield
            return
        with frozen_statistics(model.image_encoder, num_images < few):
            yield


def _synchronise_batchnorm(model: SentimentModel) -> None:
    """In place, by timm's converter: torch's loses the activation of timm's BatchNorm layers, and
    does the same for all others."""
    from timm.layers import convert_sync_batchnorm

    before = dict(model.named_modules())
    convert_sync_batchnorm(model)
    after = dict(model.named_modules())
    new = {module: after[name] for name, module in before.items()}
    for encoder in (model.text_encoder, model.image_encoder):
        if encoder is None:
            continue
        # A layer that is a BatchNorm itself has been replaced, and what knows it must follow.
        encoder.trained = [new.get(part, part) for part in encoder.trained]
        encoder.layers = tuple(tuple(new.get(m, m) for m in layer) for layer in encoder.layers)
        encoder.train(encoder.training)


def check_taken_by_launch(model: SentimentModel, config: Config, world: World) -> None:
    """Raise `UserError` for a model that this launch cannot train. No collective and no device."""
    check_taken_by_engine(model, world)
    if device_type() == "cuda":
        _check_attention(model, config.gpu)


def _check_attention(model: SentimentModel, gpu: GpuConfig) -> None:
    """Raise `UserError` where only flash may be used, and `model` has attention under a mask, which
    flash does not take.

    Padded texts have a mask, even where packed ones have a kernel of their own: a batch is padded
    where packing would save little. So have the rows that a head of ours asks.
    """
    if set(gpu.attention) != {"flash"}:
        return
    encoder, masked = model.text_encoder, []
    if encoder is not None and packed_attention.can_use(encoder.body):
        masked.append("its text encoder")
    if any(isinstance(module, Attention) for module in model.fusion.modules()):
        masked.append("its head")
    if masked:
        have = "have" if len(masked) > 1 else "has"
        raise UserError(
            f"gpu.attention=[flash] cannot be used with this model: {' and '.join(masked)} {have} "
            "attention under a mask, which PyTorch's flash does not take; name another backend "
            "with it, as in gpu.attention=[flash,efficient,math]"
        )


def check_taken_by_engine(model: nn.Module, world: World) -> None:
    """Raise `UserError` for weights that DeepSpeed cannot handle: 0-dimensional ones.

    It fails on them at start-up ("self.dim() cannot be 0 to view Float as Byte", DeepSpeed 0.19),
    under ZeRO 1, 2 and 3, whether they are trained or frozen.
    """
    single = [name for name, weight in model.named_parameters() if weight.dim() == 0]
    if single and world.deepspeed:
        raise UserError(
            f"{', '.join(single)} of this model are single numbers (0-dimensional), with which "
            "DeepSpeed does not start; launch with DDP (accelerate launch --config_file "
            "accelerate_config.yaml ...) or use another encoder"
        )


def rehearse(model: DistributedDataParallel, bare_model: SentimentModel) -> None:
    """One forward and backward pass whose only effect is DDP's final layout of buckets.

    DDP rebuilds its gradient buckets after the first backward pass, in the order in which gradients
    arrived. From four ranks on, the layout decides the order of sums: a resumed run would take its
    first step with the first layout where the uninterrupted run has the second. After a rehearsal
    every step of every launch has the second one.
    """
    device = next(bare_model.parameters()).device
    side = 32
    if bare_model.image_encoder is not None:
        side = bare_model.image_encoder.preprocessing.image_size_px
    input_ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=device)
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    model.train()
    with torch.random.fork_rng(own_gpus(device)), frozen_statistics(bare_model, True):
        output = model(input_ids, torch.ones_like(input_ids), images, auxiliary=True)
        logits, of_heads = (output, {}) if isinstance(output, torch.Tensor) else output
        sum((one.float().sum() for one in of_heads.values()), logits.float().sum()).backward()
    model.zero_grad(set_to_none=True)
