"""One evaluation, one model: what is loaded is read whole, and all ranks load the same.

Each rank looks the export up by itself, and the run that it belongs to may be training. So the
ranks compare what they loaded, and where it differs, all load what the main rank has.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mmsa.errors import AgreedError, UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget, with_export
from mmsa.export import (
    Export,
    load_tokenizer_of,
    load_weights,
    read_export,
    untrained_model,
)
from mmsa.export_target import Replaced, Target, read_export_whole, read_in_place
from mmsa.models.model import SentimentModel
from mmsa.process.runtime import logger

if TYPE_CHECKING:
    from mmsa.data.text import TextTokenizer

T = TypeVar("T")
_Loaded = tuple[Export, SentimentModel, "TextTokenizer | None"]

_ATTEMPTS = 10
_WAIT_S = 0.2  # before the third look, twice as long before the fourth, and so on
_RANKS_NAMED = 4


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory, on the CPU, and the target whose export it is."""

    target: EvalTarget
    model: SentimentModel
    tokenizer: TextTokenizer | None

    @property
    def digest(self) -> str:
        """Equal on two ranks only if they would report the same: name, weights and settings."""
        export = self.target.export
        content: list[Any] = [
            *(self.target.source.name, export.weights_sha256, export.facts, export.label_names),
            *(export.config.to_yaml(), export.preprocessing.to_json(), repr(export.calibration)),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_model(target: EvalTarget) -> OpenedModel:
    """Load the model of `target`; if its run has removed the export since, that of its successor.

    Raises `UserError` for an export that is damaged, or that is removed faster than it is read.
    """
    request = target.request
    source, loaded = read_export_whole(
        request.path, request.checkpoint, _Reader(), first=target.source
    )
    return _opened(target, source, loaded)


def agree_on_model(opened: OpenedModel, accelerator: Accelerator) -> OpenedModel:
    """The same model on every rank: the main rank's. A collective.

    A rank that has another one loads the main rank's. If its run has removed that meanwhile, the
    main rank looks again. Raises `AgreedError` if the ranks do not come to have the same.
    """
    mine: OpenedModel | None = opened
    found = _in_words(opened)
    everyone: list[tuple[str, str]] = []
    for attempt in range(_ATTEMPTS):
        everyone = gather_object([("" if mine is None else mine.digest, found)])
        if mine is not None and {digest for digest, _ in everyone} == {mine.digest}:
            return mine
        if not attempt:
            logger.info("the ranks had opened different exports; all load that of the main rank")
        time.sleep(max(0, attempt - 1) * _WAIT_S)
        if accelerator.is_main_process:
            assert mine is not None
            opened = mine
        mine, found = _as_main_rank(opened, mine, accelerator)
    first = everyone[0]
    others = [f"rank {i}: {each[1]}" for i, each in enumerate(everyone) if each[0] != first[0]]
    raise AgreedError(
        f"{opened.target.request.path}: the ranks could not load the same export in {_ATTEMPTS} "
        f"attempts (the main rank: {first[1]}; {'; '.join(others[:_RANKS_NAMED])}). Repeat the "
        "command when the run has ended, or evaluate a copy of the export"
    )


def main_rank_does(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What `act` returns on the main rank, which alone calls it, on every rank; a collective.

    The result is pickled. A `UserError` of the main rank is an `AgreedError` on all.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = act()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome, from_process=0)
    if outcome[1] is not None:
        raise AgreedError(outcome[1])
    result: T = outcome[0]
    return result


def _as_main_rank(
    opened: OpenedModel, mine: OpenedModel | None, accelerator: Accelerator
) -> tuple[OpenedModel | None, str]:
    """(what this rank has after following the main rank, that in words)."""
    reopened: list[OpenedModel] = []

    def look_again() -> tuple[Target, str]:
        reopened.append(open_model(opened.target))  # the same directory, as long as it is there
        return reopened[0].target.source, reopened[0].digest

    source, digest = main_rank_does(accelerator, look_again)
    if reopened:
        return reopened[0], _in_words(reopened[0])
    if mine is not None and mine.digest == digest:
        return mine, _in_words(mine)
    try:
        theirs = _opened(opened.target, source, read_in_place(source, _Reader()))
    except Replaced:
        return None, f"{source.directory} was removed while it was read"
    except UserError as error:
        return None, str(error)
    return theirs, _in_words(theirs)


def _in_words(opened: OpenedModel) -> str:
    export = opened.target.export
    step = export.facts.get("step")
    return f"{'no step' if step is None else f'step {step}'}, weights {export.weights_sha256[:12]}"


class _Reader:
    """Reads an export into memory; a further attempt does not build the model again.

    Building it takes longer than reading it, and the run may remove the export meanwhile.
    """

    def __init__(self) -> None:
        self._model: SentimentModel | None = None
        self._architecture: tuple[Any, ...] = ()

    def __call__(self, source: Target) -> _Loaded:
        export = read_export(source.directory)
        architecture = (export.config.model, export.label_names, export.preprocessing.image)
        if self._model is None or self._architecture != architecture:
            self._model, self._architecture = untrained_model(export), architecture
        tokenizer = load_tokenizer_of(export)
        assert export.weights_sha256  # compared with what was written, and kept
        return export, load_weights(self._model, export), tokenizer


def _opened(
    target: EvalTarget,
    source: Target,
    loaded: _Loaded,
) -> OpenedModel:
    export, model, tokenizer = loaded
    return OpenedModel(with_export(target, source, export), model, tokenizer)
