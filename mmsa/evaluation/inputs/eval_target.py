"""What is evaluated: an export on a split of packed data, checked before any process group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.config import Config
from mmsa.data.manifest import Manifest, load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import UserError
from mmsa.export import Export, Target, code_version, read_export, resolve_export

# Settings that do not make another configuration: where things lie, how fast, and the seed.
_NO_PART_OF_IT: dict[str, set[str]] = {
    "run": {"dir", "seed", "log_every_steps", "audit", "deterministic"},
    "data": {"shards", "num_workers"},
    "train": {"keep_checkpoints", "checkpoint_every_steps", "micro_batch_size"},
}


@dataclass(frozen=True)
class EvalTarget:
    """One export, the split it is evaluated on, and how."""

    target: Target
    export: Export
    shards: str
    manifest: Manifest
    reader: SplitReader
    batch_size: int

    @property
    def split(self) -> str:
        return self.reader.split

    @property
    def name(self) -> str:
        """What tables call it: the run's or export's directory, and the checkpoint if not best."""
        chosen = self.target.name
        plain = self.target.home.name or str(self.target.home)
        return plain if chosen in ("best", "export") else f"{plain}/{chosen}"

    def report_directory(self) -> Path:
        """Where its report lies unless --out says otherwise."""
        return self.target.home / "reports" / f"{self.split}-{self.target.name}"

    def identity(self, *, precision: str, device_type: str) -> dict[str, Any]:
        """Names of data, weights and code: nothing of the world, host or time."""
        return {
            "split": self.split,
            "batch_size": self.batch_size,
            "precision": precision,
            "device_type": device_type,
            "dataset": self.manifest.dataset,
            "label_names": list(self.export.label_names),
            "protocol": {
                "name": self.manifest.protocol.name,
                "hash": self.manifest.protocol.hash,
            },
            "shards_digest": self.manifest.digest,
            "weights_sha256": self.export.weights_sha256,
            "step": self.export.facts.get("step"),
            "seed": self.export.config.run.seed,
            "configuration": configuration_hash(self.export.config),
            "code_version": code_version(),
        }


def open_subject(
    path: Path, *, checkpoint: str, shards: str | None, split: str, batch_size: int | None
) -> EvalTarget:
    """Find the export of `path` and the split; `UserError` where either is not there or empty.

    `shards` None are those that the model was trained on, `batch_size` None the export's setting.
    """
    target = resolve_export(path, checkpoint)
    export = read_export(target.directory)
    where = shards or str(export.config.data.shards)
    manifest = load_manifest(where)
    if split not in manifest.splits:  # named: of many folds one may have no test samples here
        known = ", ".join(manifest.splits)
        raise UserError(f"the shards {where} have no split '{split}'; they have: {known}")
    reader = SplitReader(where, manifest, split, export.class_map(manifest.classes))
    if not len(reader):
        raise UserError(f"the split '{split}' of {where} has no samples to evaluate")
    reader.shards.check_tars(reader.directory)
    return EvalTarget(
        target, export, where, manifest, reader, batch_size or export.config.eval.batch_size
    )


def configuration_hash(config: Config) -> str:
    """Equal for runs that differ in their seed, in places and in speed alone: 16 hex digits."""
    content = config.model_dump(mode="json", exclude={"launch", "eval"})
    for section, names in _NO_PART_OF_IT.items():
        for name in names:
            del content[section][name]
    # Of a tokenizer whose words were counted on the train split: another in every fold.
    (content["model"]["text_encoder"]["config"] or {}).pop("vocab_size", None)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def samples_hash(keys: Sequence[str], label_names: Sequence[str]) -> str:
    """The sha256 of evaluated keys with their true classes: equal for an equal sample set."""
    lines = "".join(f"{key}\t{name}\n" for key, name in zip(keys, label_names, strict=True))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()
