"""What an existing run directory means for the command that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmsa.config import Config, load_config
from mmsa.errors import UserError

CONFIG_NAME = "config.yaml"
STATUS_NAME = "status.json"

# What a start that failed early leaves: no reason to refuse the directory.
_OF_A_FAILED_START = (STATUS_NAME, "log.txt", "metrics.jsonl", "tensorboard", "audit")

# Settings that may differ between the parts of one run: where things are, how they are launched
# and shown. The shards' place may change because their digest is compared; the micro-batch may,
# because only the division of the same global batches depends on it.
_FREE = (
    "run.dir",
    "run.log_every_steps",
    "data.shards",
    "data.num_workers",
    "data.timeout_s",
    "eval",
    "launch",
    "train.micro_batch_size",
    "train.keep_checkpoints",
    "train.checkpoint_every_steps",
    "train.mixed_precision",
    "model.text_encoder.weights",
    "model.image_encoder.weights",
)


def differences(old: Config, new: Config) -> list[str]:
    """Settings that differ and would make the resumed run another one, as `key: old -> new`."""
    before, after = _comparable(old), _comparable(new)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]


def earlier_config(run_dir: Path) -> Config | None:
    """The configuration that an existing run directory was begun with; None where there is none."""
    path = run_dir / CONFIG_NAME
    return load_config(str(path)) if path.is_file() else None


def check_run_dir(run_dir: Path) -> None:
    """Raise `UserError` where a new run would be written among files that are not a run's."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; give another run.dir")
    foreign = [path.name for path in run_dir.iterdir() if path.name not in _OF_A_FAILED_START]
    if foreign:
        raise UserError(
            f"{run_dir} holds files that are not of a run ({', '.join(sorted(foreign)[:3])}, ...); "
            "give a new or an empty run.dir"
        )


def check_same_run(run_dir: Path, earlier: Config, config: Config) -> None:
    """Raise `UserError` where `config` would continue the run as another one."""
    changed = differences(earlier, config)
    if changed:
        raise UserError(
            f"{run_dir} holds a run with another configuration ({'; '.join(changed)}). "
            "Give another run.dir, or the earlier settings to go on with it"
        )


def check_same_data(state: dict[str, Any], shards_digest: str) -> None:
    """Raise `UserError` where the checkpoint with `state` was trained on other shards."""
    if state["shards_digest"] != shards_digest:
        raise UserError(
            f"the checkpoint was trained on shards with digest {state['shards_digest'][:12]}, "
            f"data.shards has {shards_digest[:12]}. Give the same shards, or another run.dir"
        )


def check_same_precision(state: dict[str, Any], mixed_precision: str) -> None:
    """Raise `UserError` where the launch computes in another precision than the checkpoint's."""
    if state["mixed_precision"] != mixed_precision:
        raise UserError(
            f"the run was begun with mixed precision {state['mixed_precision']}, this launch has "
            f"{mixed_precision}. Set train.mixed_precision={state['mixed_precision']}, or give "
            "another run.dir"
        )


def is_finished(run_dir: Path) -> bool:
    """Whether `status.json` says that the run reached its end."""
    try:
        return bool(json.loads((run_dir / STATUS_NAME).read_text())["state"] == "done")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _comparable(config: Config) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    classes = content["data"]["classes"]
    if isinstance(classes, dict):
        # A list, because its order is that of the logits and dictionaries compare without it.
        content["data"]["classes"] = list(classes.items())
    return _flat(content)


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
