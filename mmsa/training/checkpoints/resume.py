"""What an existing run directory means for a command that names it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmsa.config import Config, load_config
from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME, CONFIG_NAME
from mmsa.foundation.settings_yaml import flat_keys, in_words
from mmsa.process.runtime import NCCL_FOLDER_NAME
from mmsa.process.status import STATUS_NAME, read_status
from mmsa.training.checkpoints.intact import COPY_NAME, read_state
from mmsa.training.checkpoints.run_lock import LOCK_NAME

# What a launch that failed early leaves, and what was written to submit it (launch/job_log.py): not
# a reason to refuse the directory.
_OF_A_FAILED_START = (
    *(STATUS_NAME, LOCK_NAME, "log.txt", "metrics.jsonl", "tensorboard", "audit", "slurm"),
    *("trackers.json", "wandb", "launch.log", NCCL_FOLDER_NAME),
)

# Settings that may differ between the parts of one run: where things are, how they are launched
# and shown. The shards' place may change because their digest is compared; the micro-batch may,
# because only the division of the same global batches depends on it.
_FREE = (
    "run.dir",
    "run.log_every_steps",
    "run.profile",
    "run.trackers",
    "run.max_time",
    "run.stop_signals",
    "run.stop_timeout_s",
    "run.collective_timeout_s",
    "data.shards",
    "data.cache",
    "data.cache_limit",
    "data.num_workers",
    "data.read_ahead",
    "data.timeout_s",
    "eval",
    "gpu",
    "launch",
    "train.micro_batch_size",
    "train.checkpoint_in_background",
    "train.keep_checkpoints",
    "train.checkpoint_every_steps",
    "train.mixed_precision",
    "train.on_nonfinite",
    "train.compile",
    "model.text_encoder.gradient_checkpointing",
    "model.image_encoder.gradient_checkpointing",
    "model.text_encoder.weights",
    "model.image_encoder.weights",
)

# Runs of versions before `auto`, whose default was `cls`; the checkpoint says what the model has.
_SAME = ["model.text_encoder.pooling", "cls", "auto"]


def differences(old: Config, new: Config) -> list[str]:
    """Settings that would turn the resumed run into a different one, as `key: old -> new`."""
    before, after = _comparable(old), _comparable(new)
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not _is_free(key)
        and [key, before.get(key), after.get(key)] != _SAME
    ]


def copy_in(checkpoint: Path) -> Config | None:
    """The run's configuration in a checkpoint; None in one of an early version."""
    path = checkpoint / COPY_NAME
    return load_config(str(path)) if path.is_file() else None


def check_run_dir(run_dir: Path, *, may_hold: Collection[str] = ()) -> None:
    """Raise `UserError` if a new run would be written among foreign files.

    `may_hold` are names that are not foreign here.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; choose another run.dir")
    known = {*_OF_A_FAILED_START, *may_hold}
    foreign = [path.name for path in run_dir.iterdir() if path.name not in known]
    if foreign:
        raise UserError(
            f"{run_dir} contains files of something else ({', '.join(sorted(foreign)[:3])}, ...); "
            "choose a new or an empty run.dir"
        )


def check_same_run(
    run_dir: Path,
    earlier: Config | None,
    config: Config,
    *,
    checkpoint: Path | None,
    precision: str,
    shards_digest: str | None,
) -> None:
    """Raise `UserError` if `config` would continue the run as a different one.

    Compares with the `checkpoint` that the run resumes from, which is intact; without one, with the
    run's configuration, `earlier`. All differences are in one list. `precision` is what this launch
    computes in; `shards_digest` is None if the shards cannot be read, which is reported elsewhere.
    Reads files only: every rank finds the same before the process group exists.
    """
    if checkpoint is not None:
        changed = _differences_of(checkpoint, earlier, config, precision, shards_digest)
    else:
        changed = [] if earlier is None else differences(earlier, config)
    if changed:
        listed = "; ".join(dict.fromkeys(changed))
        what_to_do = "Choose another run.dir, or use the earlier settings to resume it"
        if is_finished(run_dir):
            what_to_do = f"It is finished: {further_in_words(run_dir)}"
        raise UserError(
            f"{run_dir} contains a run with another configuration ({listed}). {what_to_do}"
        )


def _differences_of(
    checkpoint: Path,
    earlier: Config | None,
    config: Config,
    precision: str,
    shards_digest: str | None,
) -> list[str]:
    """What differs between the launch and a checkpoint."""
    state = read_state(checkpoint)
    changed = []
    if state["config_sha256"] != config_sha256(config):
        written = copy_in(checkpoint)
        if written is not None:
            changed += differences(written, config)
        else:
            # Of an early version. The run's configuration may have been edited, and the export's
            # has the architecture written out, so the model's section is left to the weights.
            changed += [] if earlier is None else differences(earlier, config)
            exported = load_config(str(checkpoint / CHECKPOINT_EXPORT_NAME / CONFIG_NAME))
            lines = differences(exported, config)
            changed += [line for line in lines if not line.startswith("model.")]
    if shards_digest is not None and state["shards_digest"] != shards_digest:
        changed.append(
            f"digest of the shards: {state['shards_digest'][:12]} -> {shards_digest[:12]}"
        )
    if state["mixed_precision"] != precision:
        before = state["mixed_precision"]
        changed.append(
            f"mixed precision of the launch: {before} -> {precision} (set train.mixed_precision="
            f"{before})"
        )
    return changed


def digest_of(config: Config) -> str | None:
    """The digest of `data.shards`; None if they cannot be read, which is reported later."""
    try:
        return load_manifest(str(config.data.shards)).digest
    except UserError:
        return None


def config_sha256(config: Config) -> str:
    """The SHA-256 of the settings that define a run: all except the free ones."""
    fixed = {key: value for key, value in _comparable(config).items() if not _is_free(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def continuation_in_words(
    state: dict[str, Any], *, engine: str, world_size: int, batchnorm: bool
) -> list[str]:
    """What resuming from a checkpoint with `state` means where this launch is a different one."""
    words = []
    if state["engine"] != engine:
        words.append(
            f"the checkpoint was written under {state['engine']}, this launch is {engine}: "
            "weights, optimizer state, step and position in the data carry over; sums are computed "
            "in another order from here on, so numbers agree within rounding"
        )
    if state["world_size"] != world_size:
        words.append(
            f"the checkpoint was written by {state['world_size']} process(es), this launch has "
            f"{world_size}: the same global batches follow; dropout draws differ, because they are "
            "seeded per rank"
        )
        if batchnorm and state["world_size"] > 1:
            words.append(
                f"each rank starts from the mean of the {state['world_size']} ranks' BatchNorm "
                "statistics; the ranks' own statistics are not continued"
            )
    return words


def finished_in_words(run_dir: Path) -> str:
    """What a command that would train a finished run says."""
    named = shlex.quote(str(run_dir))
    return (
        f"{run_dir} is finished; evaluate it with: python evaluate.py {named}\n"
        f"{further_in_words(run_dir)}"
    )


def further_in_words(run_dir: Path) -> str:
    """How to train a finished run further, as a sentence without its full stop."""
    named = shlex.quote(str(run_dir))
    return (
        "to train its best model further, with other settings or data, begin a new run from it: "
        f"train.init_from={named} run.dir=NEW"
    )


def is_finished(run_dir: Path) -> bool:
    """Whether `status.json` says that the run is done."""
    return bool(read_status(run_dir / STATUS_NAME).get("state") == "done")


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _shown(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "not set"
    value = settings[key]
    if key == "data.classes" and value and not isinstance(value[0], str):
        value = dict(value)
    return in_words(value)


def _comparable(config: Config) -> dict[str, Any]:
    content = config.content()
    for encoder in ("text_encoder", "image_encoder"):
        if content["model"][encoder]["train"] != "last_n":
            content["model"][encoder]["last_n"] = 0  # it has no effect; a new command must drop it
    classes = content["data"]["classes"]
    if isinstance(classes, dict):
        # A list, because its order is that of the logits and dictionaries compare without it.
        content["data"]["classes"] = list(classes.items())
    return flat_keys(content)
