"""The exports that a soup is made of: opened, and found to be of one architecture and one set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsa.data.text import TextTokenizer
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import (
    EvalTarget,
    Request,
    configuration_hash,
    open_target,
)
from mmsa.evaluation.requested_targets import short_names
from mmsa.export import WEIGHTS_NAME, load_tokenizer_of
from mmsa.export_target import Replaced, read_in_place
from mmsa.foundation.settings_yaml import flat_keys
from mmsa.models.weights import read_state

# Settings of a model that change how it is trained and not what its weights mean.
_OF_TRAINING = re.compile(
    r"class_weights|label_smoothing|loss.*|.*dropout.*|.*drop_path.*|.*_encoder\.(name|tokenizer"
    r"|weights|train|last_n|batch_norm|gradient_checkpointing|image_size_px)"
    r"|.*\.(_name_or_path|transformers_version|dtype)"
)


@dataclass(frozen=True)
class Ingredient:
    """An export and its validation split."""

    name: str
    target: EvalTarget

    @property
    def weights_sha256(self) -> str:
        return self.target.export.weights_sha256

    def state(self) -> Mapping[str, Tensor]:
        """Its tensors; `UserError` if its run, still training, has removed it."""
        directory = self.target.source.directory
        try:
            return read_in_place(self.target.source, lambda _: read_state(directory / WEIGHTS_NAME))
        except Replaced:
            raise UserError(
                f"{self.name}: its run removed the export {directory} while the soup was made; "
                "repeat the command when the run has ended"
            ) from None

    def described(self, score: float) -> dict[str, Any]:
        """What the export of a soup says about it; `score` is its own on validation."""
        export = self.target.export
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "step": export.facts.get("step"),
            "seed": export.config.run.seed,
            "configuration": configuration_hash(export),
            "score": score,
        }


def open_ingredients(paths: Sequence[Path], shards: str | None) -> list[Ingredient]:
    """Open the exports at `paths` on the validation split of `shards` (None: their own).

    Raises `UserError` unless they are two or more models of one architecture, with the same inputs
    and classes, trained on these shards.
    """
    if len(paths) < 2:
        raise UserError("a soup needs two runs or exports or more; one was given")
    found = [
        Ingredient(name, open_target(Request(path, "best", shards, "val", None)))
        for name, path in zip(short_names(paths), paths, strict=True)
    ]
    first = found[0]
    for place, other in enumerate(found[1:], start=1):
        for earlier in found[:place]:
            if earlier.weights_sha256 == other.weights_sha256:
                raise UserError(
                    f"{earlier.name} and {other.name} are the same weights; name each once"
                )
        problem = _difference(first, other)
        if problem:
            raise UserError(f"{first.name} and {other.name} cannot be mixed: {problem}")
    for one in found:
        trained = one.target.export.facts.get("shards_digest")
        if trained != one.target.manifest.digest:
            raise UserError(
                f"{one.name} was trained on other shards (digest {str(trained)[:12]}) than "
                f"{one.target.shards} ({one.target.manifest.digest[:12]}), whose validation split "
                "it may have been trained on; give the shards of its training with --shards"
            )
    return found


def select_by(ingredients: Sequence[Ingredient], metric: str | None) -> str:
    """The score that decides: `metric`, or what all runs were selected by."""
    if metric is not None:
        return metric
    found = sorted({one.target.export.config.train.select_by for one in ingredients})
    if len(found) > 1:
        raise UserError(
            f"the runs were selected by different scores ({', '.join(found)}); choose one with "
            "--metric"
        )
    return found[0]


def _difference(first: Ingredient, other: Ingredient) -> str | None:
    """Why two exports cannot be mixed, as a clause with what to do; None if they can."""
    ours, theirs = first.target.export, other.target.export
    if ours.label_names != theirs.label_names:
        return (
            f"the classes of one are {', '.join(ours.label_names)}, of the other "
            f"{', '.join(theirs.label_names)}. A soup needs the same ones in the same order"
        )
    digests = [one.facts.get("shards_digest") for one in (ours, theirs)]
    if digests[0] != digests[1]:
        return (
            f"they were trained on different shards (digests {str(digests[0])[:12]} and "
            f"{str(digests[1])[:12]}), so there is no validation split that both have not been "
            "trained on"
        )
    if ours.preprocessing != theirs.preprocessing:
        return "their inputs are prepared differently (preprocessing.json). Train them alike"
    if ours.may_lack != theirs.may_lack:
        said = [" and ".join(one.may_lack) or "none" for one in (ours, theirs)]
        return (
            f"they have stand-ins for other missing modalities ({said[0]}; {said[1]}). A soup "
            "needs the same model.stand_ins in all; the mean of probabilities takes any on "
            "complete samples: evaluate.py ... --ensemble"
        )
    return (
        _other_tensors(first.state(), other.state())
        or _other_settings(_architecture(first), _architecture(other))
        or _other_tokenizer(load_tokenizer_of(ours), load_tokenizer_of(theirs))
    )


def _other_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    named = {
        name: (tuple(ours[name].shape) if name in ours else "missing",
               tuple(theirs[name].shape) if name in theirs else "missing")
        for name in sorted({*ours, *theirs})
    }  # fmt: skip
    wrong = [f"{name} is {a} and {b}" for name, (a, b) in named.items() if a != b]
    if not wrong:
        return None
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return (
        f"{len(wrong)} of {len(named)} tensors differ ({'; '.join(wrong[:3])}{more}). A soup needs "
        "one architecture; the mean of probabilities takes any: evaluate.py ... --ensemble"
    )


def _architecture(ingredient: Ingredient) -> dict[str, Any]:
    settings = flat_keys(ingredient.target.export.config.model.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if not _OF_TRAINING.fullmatch(key)}


def _other_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    wrong = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if not wrong:
        return None
    shown = "; ".join(f"model.{key}: {ours.get(key)} and {theirs.get(key)}" for key in wrong[:3])
    return (
        f"their models differ ({shown}). A soup needs one architecture; the mean of probabilities "
        "takes any: evaluate.py ... --ensemble"
    )


def _other_tokenizer(ours: TextTokenizer | None, theirs: TextTokenizer | None) -> str | None:
    if ours is None or theirs is None or ours.backend_json == theirs.backend_json:
        return None
    return "their tokenizers give other ids. A soup needs runs with the same tokenizer"
