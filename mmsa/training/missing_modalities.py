"""What a new run does about samples without a text or an image."""

from __future__ import annotations

import logging

from mmsa.config import Config
from mmsa.data.manifest import Manifest, Modality
from mmsa.errors import UserError
from mmsa.models.fusion import fusion_class
from mmsa.models.stand_ins import chosen_stand_ins, modalities_of

logger = logging.getLogger("mmsa")


def settle_stand_ins(config: Config, manifest: Manifest) -> Config:
    """`config` with the modalities that get a stand-in, where it leaves them at `auto`.

    Those that its head reads, and that a sample of train or val lacks or `data.modality_dropout`
    masks. Logs what the splits lack. Raises `UserError` where the settings name no stand-in for
    what a sample lacks, where no sample of train has a modality that the head reads, and for
    synchronised BatchNorm over images that may be missing.
    """
    reads = modalities_of(fusion_class(config.model.fusion.name))
    missing = {
        name: number for name, number in manifest.missing("train", "val").items() if name in reads
    }
    _refuse_empty_train(config, manifest, reads)
    if config.model.stand_ins == "auto":
        dropout = config.data.modality_dropout
        masked = {"text": dropout.text > 0, "image": dropout.image > 0}
        wanted = tuple(name for name in reads if name in missing or masked[name])
        if wanted:
            model = config.model.model_copy(update={"stand_ins": wanted})
            config = config.model_copy(update={"model": model})
    chosen = chosen_stand_ins(config.model)
    for name, number in missing.items():
        if name not in chosen:
            raise UserError(
                f"{number:,} samples of train and val of {config.data.shards} have no {name}, and "
                f"model.stand_ins names none for it; add {name} to it, or leave it at auto"
            )
        logger.info("samples of train and val without %s: %s; a stand-in is learned", name, number)
    if "image" in missing and config.model.image_encoder.batch_norm == "sync":
        raise UserError(
            f"{missing['image']:,} samples of train and val of {config.data.shards} have no image, "
            "and model.image_encoder.batch_norm=sync needs images on every rank at every step; use "
            "batch_norm: train or frozen"
        )
    return config


def _refuse_empty_train(config: Config, manifest: Manifest, reads: tuple[Modality, ...]) -> None:
    """Raise `UserError` where no sample of train has a modality that the head reads."""
    split = manifest.splits["train"]
    for name in reads:
        if split.num_samples and split.missing.get(name) == split.num_samples:
            other = "text" if name == "image" else "image"
            raise UserError(
                f"no sample of the training split of {config.data.shards} has "
                f"{'an image' if name == 'image' else 'a text'}, and model.fusion.name="
                f"{config.model.fusion.name} reads it; use model.fusion.name={other}_only"
            )
