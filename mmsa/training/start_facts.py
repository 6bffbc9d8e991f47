"""What a run logs at its start: launch, batches, data, weights and disk as they really are."""

from __future__ import annotations

import logging
from typing import Any

from mmsa.engines.engine import launch_facts, precision
from mmsa.engines.gpu_kernels import attention_in_words, dtype_of_products
from mmsa.engines.gpu_supply import supply_in_words, supply_warnings
from mmsa.engines.single_process_warning import warn_if_single_process
from mmsa.evaluation.inputs.seen_before import count_seen
from mmsa.models.batchnorm import running_statistics
from mmsa.models.build_encoders import last_n_without_effect
from mmsa.process.runtime import World
from mmsa.training.checkpoints.checkpoint import read_state
from mmsa.training.checkpoints.resume import continuation_in_words
from mmsa.training.run import Run

logger = logging.getLogger("mmsa")


def log_start_facts(run: Run, world: World) -> None:
    """Log the facts of a run that is about to train, on the main rank.

    Warns of a single process where several were probably meant.
    """
    launch, data = launch_facts(run.accelerator), run.data
    logger.info("launch: %s", ", ".join(f"{name} {value}" for name, value in launch.items()))
    logger.info("batches: %s", data.plan.in_words())
    _log_gpu_facts(run, world)
    counts = zip(data.label_names, data.class_counts, strict=True)
    logger.info(
        "data: %s, protocol %s, digest %s; train: %s; val: %d samples",
        data.manifest.dataset,
        data.manifest.protocol.name,
        data.manifest.digest[:12],
        ", ".join(f"{number} {name}" for name, number in counts),
        data.num_validation_samples,
    )
    encoders = {"text": run.bare_model.text_encoder, "image": run.bare_model.image_encoder}
    for name, encoder in encoders.items():
        if encoder is not None:
            logger.info("weights of the %s encoder: %s", name, encoder.source)
            if encoder.unused:
                logger.info("not trained, because unused: %s", ", ".join(encoder.unused))
    for part, (trained, frozen) in run.parameter_counts.items():
        logger.info("parameters of %s: %s trained, %s frozen", part, f"{trained:,}", f"{frozen:,}")
    if run.accelerator.is_main_process:
        for words in last_n_without_effect(run.config.model):
            logger.warning("%s", words)
    if run.resumed_from is not None:
        _log_continuation(run, launch)
    elif run.parts.history and run.accelerator.is_main_process:
        _warn_of_samples_seen(run)
    logger.info("disk: %s", run.disk_need.in_words())
    if run.config.launch.world_size == "any":
        warn_if_single_process(world)


def _log_gpu_facts(run: Run, world: World) -> None:
    """How the GPU computes, and what would leave it idle; nothing on a CPU."""
    device, config = run.accelerator.device, run.config
    if device.type != "cuda":
        return
    encoder = run.bare_model.text_encoder
    if encoder is not None:
        dtype = dtype_of_products(precision(run.accelerator))
        logger.info("attention: %s", attention_in_words(encoder.body, device, dtype))
    logger.info("supply: %s", supply_in_words(config, world))
    for words in supply_warnings(config, run.data.plan, world):
        logger.warning("%s", words)


def _warn_of_samples_seen(run: Run) -> None:
    """Warn where samples of the validation or test split are in data that the source knows."""
    shards = str(run.config.data.shards)
    for entry in run.parts.history:
        if entry["shards_digest"] == run.data.manifest.digest:
            continue  # the same splits
        for split in ("val", "test"):
            num_seen, why_unknown = count_seen(shards, split, entry)
            if why_unknown:
                logger.warning(
                    "whether %s was trained on samples of the split %s of %s is unknown: %s",
                    *(entry["init_from"], split, shards, why_unknown),
                )
            elif num_seen:
                logger.warning(
                    "%s was trained on %d sample(s) of the split %s of %s, or on duplicates of "
                    "them: scores on that split are optimistically biased. Pack both sets so that "
                    "they share no samples; each report scores the clean ones separately",
                    *(entry["init_from"], num_seen, split, shards),
                )


def _log_continuation(run: Run, launch: dict[str, Any]) -> None:
    assert run.resumed_from is not None
    logger.info("resumed from %s at step %d", run.resumed_from, run.state.step)
    frozen = run.config.model.image_encoder.batch_norm == "frozen"
    for words in continuation_in_words(
        read_state(run.resumed_from),
        engine=launch["engine"],
        world_size=launch["world_size"],
        batchnorm=bool(running_statistics(run.bare_model)) and not frozen,
    ):
        logger.info("%s", words)
