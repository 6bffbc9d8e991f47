"""What is evaluated: an export on a packed split, checked before any process group exists."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsa.config import Config
from mmsa.data.manifest import Manifest, Modality, load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.shard_cache import use_cache_of_export
from mmsa.errors import UserError
from mmsa.export import Export, code_version, read_export
from mmsa.export_target import Target, read_export_whole
from mmsa.lineage import history_of, soup_of

# Settings that do not distinguish configurations: locations, speed and the seed.
_IGNORED_SETTINGS: dict[str, set[str]] = {
    "run": {"dir", "seed", "log_every_steps", "audit", "deterministic", "trackers"},
    "data": {"shards", "cache", "cache_limit", "num_workers", "read_ahead"},
    "train": {
        *("keep_checkpoints", "checkpoint_every_steps", "checkpoint_in_background"),
        *("micro_batch_size", "init_from"),
    },
}
# The same of later settings, which are taken for their defaults: what was hashed before stays.
_OPERATION: dict[str, set[str]] = {
    "run": {"max_time", "profile", "stop_signals", "stop_timeout_s", "collective_timeout_s"},
    "data": {"timeout_s"},
    "gpu": {"copy_stream"},
}


@dataclass(frozen=True)
class Request:
    """A target as the command line names it: where to look for an export again.

    `checkpoint` chooses inside a run. `shards` None means the shards the model was trained on,
    `batch_size` None the export's setting.
    """

    path: Path
    checkpoint: str
    shards: str | None
    split: str
    batch_size: int | None


@dataclass(frozen=True)
class EvalTarget:
    """An export and the split it is evaluated on."""

    request: Request
    source: Target  # where the export was found
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
        """Its name in tables: the run or export directory, and the checkpoint unless it is best."""
        checkpoint = self.source.name
        directory = self.source.home.name or str(self.source.home)
        return directory if checkpoint in ("best", "export") else f"{directory}/{checkpoint}"

    @property
    def on_other_data(self) -> bool:
        """Whether these are not the shards that the model was trained on.

        An export of an early version does not say; then they are if --shards names none.
        """
        trained = self.export.facts.get("shards_digest")
        if trained is None:
            return self.request.shards is not None
        return bool(trained != self.manifest.digest)

    @property
    def data_suffix(self) -> str:
        """Of the names of its reports; empty on the shards that the model was trained on.

        So a report on other data never replaces that on the run's own split.
        """
        if not self.on_other_data:
            return ""
        return data_suffix(self.manifest.dataset, self.manifest.digest)

    def report_directory(self) -> Path:
        """Where its report goes unless --out is given."""
        name = f"{self.split}-{self.source.name}{self.data_suffix}"
        return self.source.home / "reports" / name

    def identity(self, *, precision: str, device_type: str) -> dict[str, Any]:
        """Identifies data, weights, settings and code; independent of world size, host and time."""
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
            "configuration": configuration_hash(self.export),
            "code_version": code_version(),
        }


def open_target(request: Request) -> EvalTarget:
    """Find the export of `request` and open the split.

    Raises `UserError` if the export or the split is missing or the split is empty.
    """

    def read(source: Target) -> Export:
        export = read_export(source.directory)
        assert export.weights_sha256  # of the same directory as the rest, and kept
        return export

    source, export = read_export_whole(request.path, request.checkpoint, read)
    return open_split(request, source, export)


def open_split(request: Request, source: Target, export: Export) -> EvalTarget:
    """The target of `request` where its export is known; raises as `open_target` does."""
    shards, split = request.shards or str(export.config.data.shards), request.split
    use_cache_of_export(export.config.data)
    manifest = load_manifest(shards)
    if split not in manifest.splits:  # names the shards: with --folds, several are opened
        known = ", ".join(manifest.splits)
        raise UserError(f"the shards {shards} have no split '{split}'; they have: {known}")
    reader = SplitReader(shards, manifest, split, export.class_map(manifest.classes))
    if not len(reader):
        raise UserError(f"the split '{split}' of {shards} has no samples to evaluate")
    _refuse_missing(export, reader.missing, where=f"the split '{split}' of {shards}")
    reader.check_tars()
    reader.fetch_split()
    batch_size = request.batch_size or export.config.eval.batch_size
    return EvalTarget(request, source, export, shards, manifest, reader, batch_size)


def _refuse_missing(export: Export, missing: Mapping[Modality, int], *, where: str) -> None:
    """Raise `UserError` where samples lack what the model reads and cannot do without."""
    read = {"text": export.preprocessing.max_tokens, "image": export.preprocessing.image}
    for name, number in missing.items():
        if read[name] is not None and name not in export.may_lack:
            raise UserError(
                f"{number:,} samples of {where} have no {name}, and the model in "
                f"{export.directory} was not trained for that. Train one with "
                f"data.modality_dropout.{name} or on such samples, or evaluate this one on shards "
                "packed without --keep-missing"
            )


def with_export(target: EvalTarget, source: Target, export: Export) -> EvalTarget:
    """`target` with what `export` says, which was found at `source`.

    The split is opened again only if it is another export than before.
    """
    if export.weights_sha256 == target.export.weights_sha256:
        return replace(target, source=source, export=export)
    return open_split(target.request, source, export)


def data_suffix(dataset: str, digest: str) -> str:
    """`-NAME-DIGEST` of a packed data set for the names of directories; plain characters alone."""
    plain = re.sub(r"[^A-Za-z0-9_.+]+", "-", dataset)[:40].strip("-.") or "data"
    return f"-{plain}-{digest[:8]}"


def configuration_hash(export: Export) -> str:
    """16 hex digits, equal for models that differ only in seed, locations and speed.

    A model that began from another one, or is the mean of several, is identified with theirs.
    """
    usual: dict[str, Any] = {}
    for section, names in _OPERATION.items():
        mine, default = getattr(export.config, section), getattr(Config(), section)
        usual[section] = mine.model_copy(update={name: getattr(default, name) for name in names})
    content = export.config.model_copy(update=usual).content()
    del content["launch"], content["eval"]
    for section, names in _IGNORED_SETTINGS.items():
        for name in names:
            content[section].pop(name, None)
    # A word tokenizer is built from the train split, so this size differs between folds.
    (content["model"]["text_encoder"]["config"] or {}).pop("vocab_size", None)
    history, soup = history_of(export.facts), soup_of(export.facts)
    if history:  # whose own configuration has the one before it
        content["began_from"] = history[-1].get("configuration")
    if soup is not None:
        # All that were offered: what a greedy soup leaves out differs between folds.
        offered = [*soup["ingredients"], *soup["left_out"]]
        content["soup"] = [soup["kind"], *sorted(str(one["configuration"]) for one in offered)]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def samples_hash(keys: Sequence[str], label_names: Sequence[str]) -> str:
    """The sha256 of the evaluated keys and their true classes: identifies the sample set."""
    lines = "".join(f"{key}\t{name}\n" for key, name in zip(keys, label_names, strict=True))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()
