"""Exports: weights with everything needed to use them, in a directory that describes itself.

    model.safetensors   weights by name (without prefixes of DDP or torch.compile)
    config.yaml         the run's configuration, architectures written out, `weights: none`
    labels.json         the model's classes in the order of its logits
    preprocessing.json  from a packed sample to the encoders' input
    tokenizer/          Hugging Face tokenizer files, if the model reads text
    calibration.json    the temperature fitted on validation, if there is one
    export.json         format version, step, data set, protocol, code version, needed extensions
    digests.json        size and SHA-256 of each other file, but for calibration.json, which may be
                        fitted later and holds its own

Each file is compared with its digest when it is read. Reading executes nothing: no pickle, no
import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.calibration import CALIBRATION_NAME, Calibration, read_calibration, to_json
from mmsa.config import Config, load_config
from mmsa.data.manifest import Modality
from mmsa.errors import UserError
from mmsa.extensions import check_extensions
from mmsa.foundation.atomic_write import save_tensors
from mmsa.foundation.code_version import code_version as code_version
from mmsa.foundation.digests import (
    DIGESTS_NAME,
    FileDigest,
    Listing,
    changed_content,
    digest_of_file,
    require_intact,
    seal,
)
from mmsa.foundation.parsing import parse_json
from mmsa.labels import ClassMap, class_map, label_names_in
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
EXPORT_VERSION = 1
_DESCRIPTION = (CONFIG_NAME, LABELS_NAME, FACTS_NAME, PREPROCESSING_NAME)  # read by `read_export`
_COPY_AGAIN = (
    "Copy it again from where it was written, or use another checkpoint of its run "
    "(evaluate.py RUN --checkpoint STEP); python -m mmsa verify RUN tells which are intact"
)


@dataclass(frozen=True)
class Export:
    """An export's description of itself; `load_model` and `load_tokenizer_of` read the rest."""

    directory: Path
    config: Config
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    facts: dict[str, Any]
    calibration: Calibration | None = None  # None where none was fitted
    digests: Listing | None = None  # None where it was written before there were any

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
        missing = [name for name in self.label_names if name not in dataset_classes]
        if wanted is None and missing:
            raise UserError(
                f"the shards do not have the model's class(es) {', '.join(missing)}; they have "
                f"{', '.join(dataset_classes)}. Pack them with --classes "
                f"{','.join(self.label_names)}: a set without a training split may lack samples of "
                "some"
            )
        return class_map(dataset_classes, list(self.label_names) if wanted is None else wanted)

    @property
    def may_lack(self) -> tuple[Modality, ...]:
        """The modalities that a sample may lack: the model has a learned stand-in for each."""
        chosen = self.config.model.stand_ins
        return () if chosen == "auto" else chosen

    @cached_property
    def weights_sha256(self) -> str:
        """The sha256 of the weights file, in hex; reads the file.

        Raises `UserError` where it is not the one that was written.
        """
        known = None if self.digests is None else self.digests.get(WEIGHTS_NAME)
        try:
            found = digest_of_file(self.directory / WEIGHTS_NAME)
        except OSError as error:
            raise UserError(
                f"the weights {error.filename} cannot be read ({error.strerror}). {_COPY_AGAIN}"
            ) from None
        if known is not None and found != known:
            what = changed_content(WEIGHTS_NAME, known, found)
            raise UserError(f"the export {self.directory} is damaged: {what}. {_COPY_AGAIN}")
        return str(found.sha256)


def write_export(
    directory: Path,
    model: SentimentModel,
    weights: Mapping[str, Tensor] | None,
    *,
    statistics: Mapping[str, Tensor],
    config: Config,
    label_names: Sequence[str],
    preprocessing: Preprocessing,
    tokenizer: TextTokenizer | None,
    facts: Mapping[str, Any],
    calibration: Calibration | None = None,
    sealed: bool = True,
) -> None:
    """Write an export of the bare `model` with `weights` into `directory`, new or empty.

    `weights` are all tensors of its state dict, whole, in CPU memory: an engine may have
    partitioned the model's own. `statistics` replace the BatchNorm running statistics of the same
    names (the mean over the ranks); the live model is not touched. With `weights` None the caller
    writes WEIGHTS_NAME; with `sealed` False it calls `seal_export`, while files are flushed, say.
    """
    from mmsa.models.model import extension_modules

    directory.mkdir(parents=True, exist_ok=True)
    assert not any(directory.iterdir()), directory
    if weights is not None:
        state = {**weights, **statistics}
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_tensors(whole, directory / WEIGHTS_NAME)
    write_architecture(directory, model, config, preprocessing, tokenizer)
    _write_json(directory / LABELS_NAME, {"label_names": list(label_names)})
    if calibration is not None:
        (directory / CALIBRATION_NAME).write_text(to_json(calibration), encoding="utf-8")
    described_facts = {"format": "mmsa-export", "version": EXPORT_VERSION, **facts}
    described_facts["digests"] = DIGESTS_NAME  # so that its absence can be noticed
    modules = extension_modules(config.model)
    if modules:
        described_facts["extensions"] = modules
    _write_json(directory / FACTS_NAME, {**described_facts, "code_version": code_version()})
    if sealed:
        seal_export(directory)


def write_architecture(
    directory: Path,
    model: SentimentModel,
    config: Config,
    preprocessing: Preprocessing,
    tokenizer: TextTokenizer | None,
) -> None:
    """Write what builds `model` without its weights, and prepares its inputs, into `directory`."""
    from mmsa.models.model import self_contained

    described = config.model_copy(update={"model": self_contained(config.model, model)})
    (directory / CONFIG_NAME).write_text(described.to_yaml(), encoding="utf-8")
    (directory / PREPROCESSING_NAME).write_text(preprocessing.to_json(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(directory / TOKENIZER_NAME)


def seal_export(directory: Path) -> dict[str, FileDigest]:
    """Write `digests.json`, the last file of an export; returns the digests of all its files.

    Reads every file once, from the memory that still holds it if it was just written.
    """
    return seal(directory, leave_out=[CALIBRATION_NAME])


def read_export(directory: Path) -> Export:
    """Read an export's description of itself.

    Raises `UserError` where `directory` is not an export, one of these files is damaged, or it
    needs modules that are not imported. Warns once where an early version wrote no digests.
    """
    if not (directory / FACTS_NAME).is_file():
        raise UserError(
            f"{directory} is not an export: it has no {FACTS_NAME}. Give a run directory, "
            "RUN/best, or RUN/checkpoints/step-N"
        )
    listing = require_intact(directory, _DESCRIPTION, remedy=_COPY_AGAIN)
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
        label_names=label_names_in(_read_json(directory / LABELS_NAME), directory / LABELS_NAME),
        preprocessing=read_preprocessing(directory),
        facts=facts,
        calibration=read_calibration(directory),
        digests=listing,
    )


def load_model(export: Export, *, check: bool = True) -> SentimentModel:
    """The model of an export on the CPU, in eval mode; every tensor must fit by name and shape.

    Raises `UserError` where the weights are damaged or of another architecture. `check` False skips
    the comparison of the digest, where the caller has just made it.
    """
    if check and export.digests is not None:
        _ = export.weights_sha256  # compared with what was written
    return load_weights(untrained_model(export), export)


def untrained_model(export: Export) -> SentimentModel:
    """A model of the architecture of an export, without its weights; reads no file."""
    from mmsa.models.model import build_model

    return build_model(
        export.config.model, len(export.label_names), preprocessing=export.preprocessing.image
    )


def load_weights(model: SentimentModel, export: Export) -> SentimentModel:
    """`model` with the weights of an export, which are not compared with their digest."""
    from mmsa.models.weights import load_strictly, read_state

    _check_inputs(export, model)
    path = export.directory / WEIGHTS_NAME
    load_strictly(model, read_state(path), where=str(path))
    return model.eval()


def _check_inputs(export: Export, model: SentimentModel) -> None:
    """Raise `UserError` where `preprocessing.json` prepares other inputs than the model reads."""
    for name, encoder, prepared in (
        ("texts", model.text_encoder, export.preprocessing.max_tokens),
        ("images", model.image_encoder, export.preprocessing.image),
    ):
        if (encoder is None) != (prepared is None):
            raise UserError(
                f"the model of {export.directory} reads {'no ' if encoder is None else ''}{name}, "
                f"and its {PREPROCESSING_NAME} has {'no ' if prepared is None else ''}settings "
                "for them; copy the export again"
            )


def load_tokenizer_of(export: Export, *, max_tokens: int | None = None) -> TextTokenizer | None:
    """The tokenizer of an export; None for a model that reads no text. `UserError` if damaged.

    `max_tokens` replaces the length at which its run cut texts.
    """
    read = export.preprocessing
    if read.max_tokens is None:
        return None
    from mmsa.data.text import load_tokenizer

    directory = export.directory / TOKENIZER_NAME
    if export.digests is not None:
        require_intact(export.directory, [f"{TOKENIZER_NAME}/"], remedy=_COPY_AGAIN)
    try:
        return load_tokenizer(str(directory), max_tokens or read.max_tokens, read.truncation_side)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged files make the libraries raise whatever they meet
        said = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise UserError(f"{directory} cannot be read ({said}); copy the export again") from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the export again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; copy the export again")
    return content
