"""Exports: weights with everything needed to use them, in a directory that describes itself.

    model.safetensors   weights by name (without prefixes of DDP or torch.compile)
    config.yaml         the run's configuration, architectures written out, `weights: none`
    labels.json         the model's classes in the order of its logits
    preprocessing.json  from a packed sample to the encoders' input
    tokenizer/          Hugging Face tokenizer files, if the model reads text
    calibration.json    the temperature fitted on validation, if there is one
    export.json         format version, step, data set, protocol, code version, needed extensions

Reading it executes nothing: no pickle, no import.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.calibration import CALIBRATION_NAME, Calibration, read_calibration, to_json
from mmsa.config import Config, load_config
from mmsa.errors import UserError
from mmsa.extensions import check_extensions
from mmsa.labels import ClassMap, class_map
from mmsa.preprocessing import PREPROCESSING_NAME, Preprocessing, read_preprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from mmsa.data.text import TextTokenizer
    from mmsa.models.model import SentimentModel

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"
LABELS_NAME = "labels.json"
FACTS_NAME = "export.json"
TOKENIZER_NAME = "tokenizer"
CHECKPOINT_EXPORT_NAME = "export"  # inside a checkpoint
STATE_NAME = "state.json"  # of a checkpoint: what the step does not determine
COMPLETE_NAME = "COMPLETE"  # of a checkpoint: each file with its size, written last
EXPORT_VERSION = 1


@cache
def code_version() -> str:
    """The version of this package, for reports and checkpoints.

    In a git checkout also the commit, with `-dirty` where files differ from it.
    """
    try:
        released = version("mmsa")
    except PackageNotFoundError:
        released = "unknown (not installed)"
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():  # else git might find another project's
        return released
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return released
    return f"{released} ({done.stdout.strip()})"


@dataclass(frozen=True)
class Export:
    """An export's description of itself; `load_model` and `load_tokenizer_of` read the rest."""

    directory: Path
    config: Config
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    facts: dict[str, Any]
    calibration: Calibration | None = None  # None where none was fitted

    def class_map(self, dataset_classes: Sequence[str]) -> ClassMap:
        """The model's classes in a data set, by name: a data set may list them in another order.

        Raises `UserError` where the data set lacks one, or has one that the model does not know.
        """
        wanted = self.config.data.classes
        unknown = set(dataset_classes) - set(self.label_names)
        if wanted is None and unknown:
            raise UserError(
                f"the shards have classes that the model does not know ({', '.join(unknown)}); it "
                f"knows {', '.join(self.label_names)}. Evaluate it on shards with these classes"
            )
        return class_map(dataset_classes, list(self.label_names) if wanted is None else wanted)

    @cached_property
    def weights_sha256(self) -> str:
        """The sha256 of the weights file, in hex."""
        with open(self.directory / WEIGHTS_NAME, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def write_export(
    directory: Path,
    model: SentimentModel,
    weights: Mapping[str, Tensor],
    *,
    statistics: Mapping[str, Tensor],
    config: Config,
    label_names: Sequence[str],
    preprocessing: Preprocessing,
    tokenizer: TextTokenizer | None,
    facts: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write an export of the bare `model` with `weights` into the new `directory`.

    `weights` are all tensors of its state dict, whole, in CPU memory: an engine may have
    partitioned the model's own. `statistics` replace the BatchNorm running statistics of the same
    names (the mean over the ranks); the live model is not touched.
    """
    from safetensors.torch import save_file

    from mmsa.models.model import extension_modules, self_contained

    directory.mkdir(parents=True)
    state = {**weights, **statistics}
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        str(directory / WEIGHTS_NAME),
    )
    described = config.model_copy(update={"model": self_contained(config.model, model)})
    (directory / CONFIG_NAME).write_text(described.to_yaml(), encoding="utf-8")
    _write_json(directory / LABELS_NAME, {"label_names": list(label_names)})
    (directory / PREPROCESSING_NAME).write_text(preprocessing.to_json(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(directory / TOKENIZER_NAME)
    if calibration is not None:
        (directory / CALIBRATION_NAME).write_text(to_json(calibration), encoding="utf-8")
    described_facts = {"format": "mmsa-export", "version": EXPORT_VERSION, **facts}
    modules = extension_modules(config.model)
    if modules:
        described_facts["extensions"] = modules
    _write_json(directory / FACTS_NAME, {**described_facts, "code_version": code_version()})


def read_export(directory: Path) -> Export:
    """Read an export's description of itself.

    Raises `UserError` where `directory` is not an export, or needs modules that are not imported.
    """
    if not (directory / FACTS_NAME).is_file():
        raise UserError(
            f"{directory} is not an export: it has no {FACTS_NAME}. Give a run directory, "
            "RUN/best, or RUN/checkpoints/step-N"
        )
    facts = _read_json(directory / FACTS_NAME)
    if facts.get("version") != EXPORT_VERSION:
        raise UserError(
            f"the export {directory} has version {facts.get('version')}; this program reads "
            f"{EXPORT_VERSION}. Use the version of mmsa that wrote it ({facts.get('code_version')})"
        )
    check_extensions(facts, directory)
    return Export(
        directory=directory,
        config=load_config(str(directory / CONFIG_NAME)),
        label_names=tuple(_read_json(directory / LABELS_NAME)["label_names"]),
        preprocessing=read_preprocessing(directory),
        facts=facts,
        calibration=read_calibration(directory),
    )


@dataclass(frozen=True)
class Target:
    """The export that a path refers to. `home` is the run or export directory it belongs to."""

    directory: Path
    home: Path
    name: str  # best, step-00000120, or "export"


def resolve_export(path: Path, checkpoint: str = "best") -> Target:
    """Find the export that `path` (run, export or checkpoint directory) refers to.

    `checkpoint` chooses inside a run: best, last, or a step number. Raises `UserError` that lists
    what exists if it is not found.
    """
    if (path / FACTS_NAME).is_file():
        return _target(path)
    if is_whole(path) and (path / CHECKPOINT_EXPORT_NAME / FACTS_NAME).is_file():
        return _target(path / CHECKPOINT_EXPORT_NAME)
    if not (path / CONFIG_NAME).is_file():
        raise UserError(
            f"{path} is not a run directory, an export or a complete checkpoint; "
            "give the run.dir of a training run"
        )
    if checkpoint == "best":
        if (path / "best" / FACTS_NAME).is_file():
            return Target(path / "best", path, "best")
        raise UserError(f"{path} has no best export yet: it has not validated yet")
    whole = whole_checkpoints(path)
    wanted = whole[:1] if checkpoint == "last" else []
    if checkpoint.isdecimal():
        wanted = [folder for folder in whole if int(folder.name[5:]) == int(checkpoint)]
    if not wanted:
        steps = ", ".join(str(int(folder.name[5:])) for folder in reversed(whole)) or "none"
        raise UserError(
            f"{path} has no checkpoint '{checkpoint}'; use best, last or one of its steps ({steps})"
        )
    return Target(wanted[0] / CHECKPOINT_EXPORT_NAME, path, wanted[0].name)


def _target(export: Path) -> Target:
    """The export at `export` and the run that contains it, whatever path was given."""
    real = export.resolve()
    if real.name == CHECKPOINT_EXPORT_NAME and real.parents[1].name == "checkpoints":
        return Target(export, real.parents[2], real.parent.name)
    if real.parent.name == "exports" and (real.parents[1] / CONFIG_NAME).is_file():
        best = (real.parents[1] / "best").resolve() == real
        return Target(export, real.parents[1], "best" if best else real.name)
    return Target(export, export, "export")


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest first."""
    candidates = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    return [path for path in candidates if is_whole(path)]


def is_whole(checkpoint: Path) -> bool:
    """Whether every file listed in the checkpoint's `COMPLETE` exists with its size."""
    try:
        sizes = json.loads((checkpoint / COMPLETE_NAME).read_text())
        return STATE_NAME in sizes and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def load_model(export: Export) -> SentimentModel:
    """The model of an export on the CPU, in eval mode; every tensor must fit by name and shape.

    Raises `UserError` where the weights are damaged or of another architecture.
    """
    from mmsa.models.model import build_model
    from mmsa.models.weights import load_strictly, read_state

    model = build_model(
        export.config.model, len(export.label_names), preprocessing=export.preprocessing.image
    )
    path = export.directory / WEIGHTS_NAME
    load_strictly(model, read_state(path), where=str(path))
    return model.eval()


def load_tokenizer_of(export: Export) -> TextTokenizer | None:
    """The tokenizer of an export; None for a model that reads no text."""
    read = export.preprocessing
    if read.max_tokens is None:
        return None
    from mmsa.data.text import load_tokenizer

    path = str(export.directory / TOKENIZER_NAME)
    return load_tokenizer(path, read.max_tokens, read.truncation_side)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the export again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; copy the export again")
    return content
