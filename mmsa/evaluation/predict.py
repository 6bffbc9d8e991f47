"""Predictions of a whole split, each sample exactly once for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mmsa.data.packed_texts import PackedTexts, of_batch
from mmsa.data.stream import Batch
from mmsa.engines import engine
from mmsa.engines.cpu_lanes import in_lanes
from mmsa.errors import UserError
from mmsa.evaluation.auxiliary_scores import AuxiliaryScores
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.process.progress import Progress


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; copies from pinned memory do not block."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def inputs_of(batch: Batch) -> tuple[torch.Tensor | PackedTexts | None, ...]:
    """The arguments of the model's forward, in their order."""
    names = ("input_ids", "attention_mask", "images", "text_present", "image_present")
    return *(batch[name] for name in names), of_batch(batch)


def outputs_of(
    model: nn.Module, batch: Batch, *, heads: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's logits (B, C) and, with `heads`, those of its auxiliary heads by modality."""
    if not heads:
        return model(*inputs_of(batch)), {}
    logits, of_heads = model(*inputs_of(batch), auxiliary=True)
    return logits, of_heads


def predict_split(
    model: nn.Module,
    batches: Iterator[Batch],
    num_batches: int,
    *,
    accelerator: Accelerator,
    label_names: Sequence[str],
    num_samples: int,
    progress: str = "",
    of_heads: AuxiliaryScores | None = None,
    lanes: int = 1,
) -> tuple[Predictions, list[int]]:
    """Run `num_batches` of this rank's evaluation batches and gather the results of all ranks.

    `model` is the unwrapped model; its training mode is restored afterwards. Collective: all ranks
    get the same predictions, sorted by key, and the number of samples that each rank computed.
    `progress` is the title of a progress bar on the main rank (or of lines in its log); "" shows
    none. `lanes` batches are computed at a time, each with the threads that torch has now
    (mmsa/engines/cpu_lanes.py). `of_heads` is given what the auxiliary heads predict; the batches
    then need `modality_labels`. Raises `UserError` unless the gathered keys are `num_samples`
    distinct ones.
    """
    was_training = model.training
    model.eval()
    keys: list[str] = []
    labels: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    quiet = not (progress and accelerator.is_main_process)
    on_device = (to_device(batch, accelerator.device) for batch in islice(batches, num_batches))

    def outputs(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with engine.autocast(accelerator):
            return outputs_of(model, batch, heads=of_heads is not None)

    computed = in_lanes(model, on_device, outputs, lanes=lanes)
    with (
        Progress(total=num_batches, what=progress, quiet=quiet, unit="batches") as bar,
        closing(computed),
    ):
        for batch, (output, in_heads) in computed:
            real = batch["num_real"]  # rows of weight 0 follow the real ones
            if of_heads is not None:
                own = {name: logits[:real] for name, logits in in_heads.items()}
                of_heads.add(own, batch["modality_labels"][:real])
            keys += batch["keys"][:real]
            # Kept on the device: copying them here would wait for the forward pass before the next
            # batch is sent.
            labels.append(batch["labels"][:real])
            logits.append(output[:real].float())
            bar.advance()
    model.train(was_training)
    of_this_rank = (keys, torch.cat(labels).cpu().numpy(), torch.cat(logits).cpu().numpy())
    parts = gather_object([of_this_rank])
    all_keys = [key for part in parts for key in part[0]]
    if len(all_keys) != num_samples or len(set(all_keys)) != num_samples:
        raise UserError(
            f"the evaluation gathered {len(all_keys)} predictions of {len(set(all_keys))} samples; "
            f"the manifest says {num_samples}. A packed sample is missing or duplicated"
        )
    predictions = Predictions.by_key(
        all_keys,
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
        label_names,
    )
    return predictions, [len(part[0]) for part in parts]
