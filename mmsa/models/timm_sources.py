"""Where the models of timm and their weights are: its registry, the hub, a directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsa.errors import UserError, first_line
from mmsa.foundation.parsing import parse_json
from mmsa.hub import checkpoint_of_url, hub_file
from mmsa.models.encoders import IMAGE_SECTION
from mmsa.models.weights import State, is_export

TIMM_PREFIX = "timm:"
_HUB_PREFIX = "hf-hub:"  # as timm itself writes a repository
_CARD_NAME = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


class UnknownName(UserError):
    """A name that this version of timm does not have."""


@dataclass(frozen=True)
class Source:
    """What is known of a model before it is built.

    `architecture` is timm's name for it, `card` its `pretrained_cfg` (input size, mean, where the
    weights are), `arguments` those of its class that a repository or directory states.
    """

    architecture: str
    card: Mapping[str, Any]
    arguments: Mapping[str, Any]


def source_of(name: str) -> Source:
    """The model `name`: of timm's registry, a directory, or a repository (`OWNER/NAME`).

    Raises `UnknownName` with the nearest names, and `UserError` where a directory or repository
    does not describe a model of timm, or is not on this machine.
    """
    from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

    plain, tag = split_model_name_tag(name)
    if "/" not in name and is_model(plain):
        try:
            card = get_pretrained_cfg(name, allow_unregistered=not tag)
        except RuntimeError:  # no such tag
            raise _unknown(name) from None
        return Source(name, {} if card is None else card.to_dict(), {})
    directory = Path(name).expanduser()
    if directory.is_dir():
        source = source_of_directory(directory)
        if source is None:
            raise UserError(
                f"{directory} has no {_CARD_NAME} of timm; give a directory as timm's "
                "`save_for_hf` writes it, or the name of a model"
            )
        return source
    if not _is_repository(name):
        raise _unknown(name)
    return _read_card(hub_file(_repository(name), (_CARD_NAME,), fetching=_fetching(name)))


def source_of_directory(directory: Path) -> Source | None:
    """The model of a directory with timm's `config.json`; None where there is none."""
    if not (directory / _CARD_NAME).is_file() or is_export(directory):
        return None
    return _read_card(directory / _CARD_NAME)


def weights_in(directory: Path) -> Path:
    """The file with the weights of a directory; `UserError` where there is none."""
    for name in _WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"{directory} has no weights; expected one of {', '.join(_WEIGHTS)}")


def weights_of(name: str) -> tuple[Path, str]:
    """The file of `weights: pretrained`, downloaded where it must be, and where it is from.

    Raises `UserError` where the model has none, or they cannot be fetched.
    """
    directory = Path(name).expanduser()
    source = source_of(name)
    if directory.is_dir() and source.architecture != name:
        return weights_in(directory), str(weights_in(directory))
    card, fetching = source.card, _fetching(name)
    repository = _repository(name) if source.architecture != name else card.get("hf_hub_id")
    if repository:
        names = _names_of_weights(card.get("hf_hub_filename"))
        return hub_file(repository, names, fetching=fetching), f"timm {repository}"
    if card.get("url"):
        return checkpoint_of_url(str(card["url"])), f"timm {name}"
    raise UserError(
        f"timm has no pretrained weights of {name}; set {IMAGE_SECTION}.weights to a PATH or to "
        f"none{_other_tags(name)}"
    )


def read_timm_file(path: Path) -> State:
    """A state dict from a file as timm writes it: alone, or in a checkpoint of its training script.

    Of such a checkpoint the averaged weights are taken if it has them, as timm does. No pickled
    code is run. Raises `UserError` where the file cannot be read or is not one.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"the weights {path} cannot be read ({first_line(error)}); give an export directory, "
            "or a .safetensors or .pth file that contains only tensors"
        ) from None
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} is not a state dict (names -> tensors); save model.state_dict() and give that"
        )
    return state


def _read_card(path: Path) -> Source:
    """The model that a `config.json` of timm describes, in its present and its older form."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        stated = content["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} does not describe a model of timm (it has no `architecture`); a Hugging Face "
            "model is written hf:NAME"
        ) from None
    card = dict(content.get("pretrained_cfg", content))
    if "num_classes" in content:
        card["num_classes"] = content["num_classes"]
    known = source_of(str(stated))
    return Source(known.architecture, {**known.card, **card}, content.get("model_args") or {})


def _names_of_weights(stated: str | None) -> tuple[str, ...]:
    """The files that may hold the weights, safetensors first, as timm looks for them."""
    if stated is None:
        return _WEIGHTS
    safe = str(Path(stated.replace("pytorch_model", "model")).with_suffix(".safetensors"))
    return safe, stated


def _is_repository(name: str) -> bool:
    return name.startswith(_HUB_PREFIX) or (
        name.count("/") == 1 and not name.startswith((".", "/"))
    )


def _repository(name: str) -> str:
    return name.removeprefix(_HUB_PREFIX)


def _fetching(name: str) -> str:
    """The shell command that downloads a model to the cache."""
    named = f"{_HUB_PREFIX}{_repository(name)}" if _is_repository(name) else name
    return f'python -c "import timm; timm.create_model({named!r}, pretrained=True)"'


def _unknown(name: str) -> UnknownName:
    """That timm does not have `name`, with the nearest names."""
    from difflib import get_close_matches

    from timm import __version__, list_models, list_pretrained

    models = list_models()
    near = get_close_matches(name, list_pretrained() if "." in name else models, n=3, cutoff=0.5)
    near = near or get_close_matches(name.split(".")[0], models, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`timm.list_models()` has the names"
    return UnknownName(
        f"{IMAGE_SECTION}.name={TIMM_PREFIX + name!r}: timm {__version__} has no model {name}; "
        f"{hint} A repository of the hub is written {TIMM_PREFIX}OWNER/NAME"
    )


def _other_tags(name: str) -> str:
    """The names of the same model that have weights, as the end of a sentence."""
    from timm import list_pretrained

    names = list_pretrained(f"{name.split('.')[0]}.*")
    return f", or {IMAGE_SECTION}.name to {TIMM_PREFIX}{names[0]}" if names else ""
