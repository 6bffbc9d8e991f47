"""Where weights come from: the Hugging Face cache and hub, torchvision's checkpoints, our exports.

What is on this machine is used without a word to the network. What is not is asked for once, with
a time limit of seconds, so that a compute node without a network says at once what to fetch.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from mmsa.errors import UserError

PROBE_TIMEOUT_S = 5.0
EXPORT_WEIGHTS = "model.safetensors"

Loaded = TypeVar("Loaded")
State = Mapping[str, Tensor]


TEXT_PARTS = ("AutoModel", "AutoTokenizer")
IMAGE_PARTS = ("AutoModel", "AutoImageProcessor")


def from_hub(load: Callable[..., Loaded], name: str, parts: Sequence[str] = TEXT_PARTS) -> Loaded:
    """Call `load(name, trust_remote_code=False, local_files_only=...)`, a `from_pretrained`.

    First with the files of this machine (a directory, or the Hugging Face cache), then, if the hub
    answers within `PROBE_TIMEOUT_S`, with the network. Works for models, configurations,
    tokenizers and image processors. Raises `UserError` where `name` cannot be had, with the
    command that fetches its `parts` (classes of transformers). Code that a repository brings is never run.
    """
    if Path(name).expanduser().is_dir():
        return _in_user_words(load, str(Path(name).expanduser()), local_files_only=True)
    if name.startswith((".", "/", "~")):
        raise UserError(f"{name} is no directory; give one that exists, or a Hugging Face name")
    try:
        return load(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        _ask_hub(name, parts)
    return _in_user_words(load, name, local_files_only=False)


def _in_user_words(load: Callable[..., Loaded], name: str, *, local_files_only: bool) -> Loaded:
    try:
        return load(name, trust_remote_code=False, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be loaded: {reason} Expected the files that `save_pretrained` writes "
            "(config.json, model.safetensors, the tokenizer's), without code of its own"
        ) from None


def _ask_hub(name: str, parts: Sequence[str]) -> None:
    """Return if the hub has `name`; `UserError` where it does not, or does not answer in time."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=PROBE_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{constants.ENDPOINT} has no model named '{name}' (or it needs a login); check the "
            "spelling, or give a directory"
        ) from None
    except Exception as error:  # whatever the http library of this version raises
        raise UserError(
            f"'{name}' is not on this machine (looked in {constants.HF_HUB_CACHE}) and "
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}). Fetch it where "
            f"there is a network, with the same cache, by {_fetching(name, parts)} - or give "
            "a directory, or weights: none"
        ) from None


def _fetching(name: str, parts: Sequence[str]) -> str:
    """The shell command that brings `parts` of `name` into the cache."""
    calls = "; ".join(f"{part}.from_pretrained('{name}')" for part in parts)
    return f'python -c "from transformers import {", ".join(parts)}; {calls}"'


def torchvision_state(weights: Any) -> State:
    """The state dict of a torchvision `weights` member, from its checkpoint file or the network.

    Raises `UserError` that names the file and its place where neither has it.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(weights.url).name
    if not path.is_file():
        _ask_for(weights.url, path)
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the checkpoint {path} cannot be loaded ({reason}); delete it and fetch it again "
            f"from {weights.url}"
        ) from None


def _ask_for(url: str, path: Path) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S):
            return
    except OSError as error:  # URLError and time-outs are both
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the pretrained weights {path.name} are not on this machine (looked for {path}) and "
            f"cannot be fetched ({reason}). Fetch {url} where there is a network and put it there "
            "(TORCH_HOME moves that folder), or use weights: none or a PATH"
        ) from None


def is_export(path: Path) -> bool:
    """Whether `path` is the directory of one of our exports (and not a Hugging Face one)."""
    return (path / EXPORT_WEIGHTS).is_file() and not (path / "config.json").is_file()


def export_state(path: Path, part: str) -> State:
    """The tensors of `part` ("text_encoder", "image_encoder") in the export `path`, prefix off.

    Raises `UserError` where the file cannot be read or holds no such part.
    """
    state = read_state(path / EXPORT_WEIGHTS)
    prefix = part + "."
    own = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    if not own:
        parts = ", ".join(sorted({key.split(".")[0] for key in state}))
        raise UserError(
            f"the export {path} has no {part} (it holds: {parts}); give the export of a run that "
            "trained one"
        )
    return own


def export_encoder_config(path: Path, part: str) -> dict[str, Any] | None:
    """The architecture that the export's `config.yaml` gives for `part`; None where it has none."""
    try:
        content = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        return content["model"][part]["config"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def read_state(path: Path) -> State:
    """A state dict from a `.safetensors` file or a `.pth` one (tensors alone: no pickled code).

    Raises `UserError` where it cannot be read or is no state dict.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the weights {path} cannot be read ({reason}); give an export directory, or a "
            ".safetensors or .pth file that holds tensors alone"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(
            f"{path} is no state dict (names -> tensors); save model.state_dict() and give that"
        )
    return state


def load_strictly(module: nn.Module, state: State, *, where: str) -> None:
    """Copy `state` into `module`; `UserError` unless names and shapes agree completely."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(
            f"{where} do not fit the encoder of this configuration: "
            f"{'; '.join(problems[:4])}{more}. Use the encoder that they were made with"
        )
    module.load_state_dict(dict(state), strict=True)
