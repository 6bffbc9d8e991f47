"""`train.init_from`: a new run begins with all weights of an export or of another run's best one.

The encoders are those of the source, tokenizer and preprocessing included, and must fit completely.
Tensors of the head and of the projections are taken where their shape fits and start fresh
elsewhere. Nothing of the optimizer is taken: the run begins at step 0 with its own schedule. Its
exports say where its weights are from (`mmsa/lineage.py`), and a resumed run reads that in its
checkpoint, so the source is needed only once.

Files alone, no collective and no device: every rank finds the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsa.config import Config, ModelConfig
from mmsa.data.text import TextTokenizer
from mmsa.errors import UserError, one_or_many
from mmsa.evaluation.inputs.eval_target import configuration_hash
from mmsa.evaluation.inputs.ledger import read_ledger
from mmsa.export import WEIGHTS_NAME, Export, load_tokenizer_of, read_export
from mmsa.export_target import Target, read_export_whole
from mmsa.lineage import history_of
from mmsa.models.fusion import build_fusion
from mmsa.models.losses import num_outputs
from mmsa.models.model import SentimentModel
from mmsa.models.weights import load_strictly, read_state

logger = logging.getLogger("mmsa")

_ENCODERS = ("text_encoder", "image_encoder")
_NAMED = 6  # tensors that a message names


@dataclass(frozen=True)
class WarmStart:
    """The export that a run begins from, in memory and whole, whatever its own run does next."""

    setting: str  # train.init_from, as it was given
    source: Target
    export: Export
    state: Mapping[str, Tensor]
    tokenizer: TextTokenizer | None  # with the longest text of the new run

    @property
    def in_words(self) -> str:
        step = self.export.facts.get("step")
        at = "" if step is None else f"step {step}, "
        return f"{self.source.directory} ({at}weights {self.export.weights_sha256[:12]})"

    @property
    def _encoders(self) -> list[str]:
        return [name for name in _ENCODERS if reads(self.export, name)]

    def load_into(
        self, model: SentimentModel, config: ModelConfig, label_names: Sequence[str]
    ) -> list[str]:
        """Give `model`, built by `config`, the weights of the source.

        Returns the names of tensors that stay fresh.
        Raises `UserError` where an encoder does not fit: which tensors, and how many.
        """
        self._load_encoders(model)
        own = model.state_dict()
        bodies = tuple(f"{name}.body." for name in _ENCODERS)
        parts = {name.split(".")[0] for name in own} - {*_ENCODERS} | {*self._encoders}
        head = [name for name in own if name.split(".")[0] in parts and not name.startswith(bodies)]
        by_class: set[str] = set()
        if tuple(label_names) != self.export.label_names:
            by_class = _tensors_by_class(model, config, len(label_names))
        fresh: list[str] = []
        reasons: list[str] = []
        for name in head:
            theirs = self.state.get(name)
            problem = _why_fresh(own[name], theirs, of_other_classes=name in by_class)
            if theirs is None or problem:
                fresh.append(name)
                reasons.append(f"{name} ({problem})")
            else:
                own[name].copy_(theirs)  # the model's own memory
        self._report(fresh, reasons, [name for name in self.state if name not in own])
        return fresh

    def _load_encoders(self, model: SentimentModel) -> None:
        if all(getattr(model, name) is None for name in self._encoders):
            raise UserError(
                f"train.init_from={self.setting} has no encoder that this model has "
                f"(model.fusion.name: {self.export.config.model.fusion.name} there); give a run "
                "that trained one of its encoders"
            )
        problems = []
        for name in self._encoders:
            encoder = getattr(model, name)
            if encoder is None:
                continue
            prefix = f"{name}.body."
            state = {
                key.removeprefix(prefix): value
                for key, value in self.state.items()
                if key.startswith(prefix)
            }
            kind = name.replace("_", " ")
            try:
                load_strictly(encoder.body, state, where=f"the weights of the {kind} in it")
            except UserError as error:
                problems.append(str(error))
            encoder.source = f"{kind} of {self.in_words}"
        if problems:
            raise UserError(
                one_or_many(problems, where=f"train.init_from={self.setting}")
                + ". To take one encoder alone, leave train.init_from out and give it as "
                "model.text_encoder.weights or model.image_encoder.weights"
            )

    def _report(self, fresh: Sequence[str], reasons: Sequence[str], unused: Sequence[str]) -> None:
        logger.info(
            "train.init_from: all weights are those of %s%s",
            self.in_words,
            f", except {len(fresh)} fresh tensor(s): {_listed(reasons)}" if fresh else "",
        )
        if unused:
            logger.info(
                "train.init_from: %d tensor(s) of it are not used here: %s",
                len(unused),
                _listed(unused),
            )

    def history(self, fresh: Sequence[str]) -> list[dict[str, Any]]:
        """What exports of the new run say about where their weights are from."""
        export, facts = self.export, self.export.facts
        openings: dict[str, int] = {}
        for opening in read_ledger(self.source.home).openings:
            digest = opening["shards_digest"]
            openings[digest] = openings.get(digest, 0) + 1
        entry = {
            "init_from": self.setting,
            "weights_sha256": export.weights_sha256,
            "step": facts.get("step"),
            "seed": export.config.run.seed,
            "configuration": configuration_hash(export),
            "dataset": facts.get("dataset"),
            "shards": export.config.data.shards,
            "shards_digest": facts.get("shards_digest"),
            "fresh": list(fresh),
            "test_openings": openings,
        }
        return [*history_of(facts), entry]


def reads(export: Export, encoder: str) -> bool:
    """Whether the model of an export has `encoder` ("text_encoder", "image_encoder")."""
    prepared = export.preprocessing
    return (prepared.max_tokens if encoder == "text_encoder" else prepared.image) is not None


def with_architectures_of(export: Export, model: ModelConfig) -> ModelConfig:
    """`model` with the architectures of an export, so that no other weights are fetched.

    An encoder of another name, or one with sizes of its own under `config`, stays what the
    configuration says; whether the tensors fit it is found out by `WarmStart.load_into`. An encoder
    that the export does not have keeps its weights too.
    """
    changed: dict[str, Any] = {}
    for name in _ENCODERS:
        if not reads(export, name):
            continue
        own, theirs = getattr(model, name), getattr(export.config.model, name)
        update: dict[str, Any] = {"weights": "none"}
        if own.name == theirs.name and own.config is None:
            update["config"] = theirs.config
        if getattr(own, "pooling", None) == "auto":
            update["pooling"] = theirs.pooling
        changed[name] = own.model_copy(update=update)
    return model.model_copy(update=changed)


def read_warm_start(config: Config) -> WarmStart | None:
    """The export that a new run of `config` begins from, with its digests compared; None for none.

    Raises `UserError` where it is missing or damaged, or is of this run itself, and where its
    tokenizer is not the one that the configuration asks for.
    """
    setting = config.train.init_from
    if setting is None:
        return None

    def read(source: Target) -> WarmStart:
        export = read_export(source.directory)
        assert export.weights_sha256  # compared with what was written, and kept
        state = read_state(source.directory / WEIGHTS_NAME)
        tokenizer = load_tokenizer_of(export, max_tokens=config.data.max_tokens)
        return WarmStart(setting, source, export, state, tokenizer)

    _, found = read_export_whole(Path(setting).expanduser(), "best", read)
    run_dir = Path(str(config.run.dir))
    if found.source.home.resolve() == run_dir.resolve():
        raise UserError(
            f"train.init_from={setting} is the run of run.dir={run_dir} itself; a run that begins "
            "from it needs a directory of its own: choose another run.dir"
        )
    _check_tokenizer(config, found)
    return found


def _check_tokenizer(config: Config, found: WarmStart) -> None:
    own = config.model.text_encoder.tokenizer
    theirs = found.export.config.model.text_encoder.tokenizer
    if found.tokenizer is None or own in (None, theirs):
        return
    named = f"tokenizer {theirs}" if theirs else "tokenizer of its text encoder"
    raise UserError(
        f"model.text_encoder.tokenizer={own}, but {found.setting} was trained with the {named}, "
        "whose token ids its weights are for; leave model.text_encoder.tokenizer out with "
        "train.init_from, and that tokenizer is used"
    )


def _tensors_by_class(model: SentimentModel, config: ModelConfig, num_classes: int) -> set[str]:
    """The names of the tensors of `model`'s heads that have a row for each class, or one for two.

    They are those whose shape depends on the number of logits. A length alone says nothing: a gate
    may have one row, and there may be as many shared tokens as classes.
    """
    encoders = (model.text_encoder, model.image_encoder)
    text_width, image_width = (0 if one is None else one.width for one in encoders)
    outputs = num_outputs(config, num_classes)
    with torch.random.fork_rng(devices=[]):
        wider = build_fusion(config.fusion, text_width, image_width, outputs + 1)
    shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    own = model.fusion.state_dict()
    found = {f"fusion.{name}" for name in own if shapes.get(name) != own[name].shape}
    if model.auxiliary is not None:  # one layer from features to logits each
        found |= {f"auxiliary.{name}" for name in model.auxiliary.state_dict()}
    return found


def _why_fresh(own: Tensor, theirs: Tensor | None, *, of_other_classes: bool) -> str | None:
    """Why a tensor of the head is not taken, as a clause; None if it is."""
    if theirs is None:
        return "not in it"
    if theirs.shape != own.shape:
        return f"{tuple(own.shape)} here, {tuple(theirs.shape)} there"
    return "of other classes, or of the same in another order" if of_other_classes else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
