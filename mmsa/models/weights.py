"""Tensors from files: exports and other checkpoints, and how they are loaded into a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mmsa.errors import UserError, first_line
from mmsa.foundation.digests import require_intact
from mmsa.foundation.parsing import parse_yaml
from mmsa.preprocessing import PREPROCESSING_NAME, ImagePreprocessing, read_preprocessing

EXPORT_WEIGHTS = "model.safetensors"
_EXPORT_CONFIG = "config.yaml"
_COPY_AGAIN = "Copy it again from where it was written, or give another one"

State = Mapping[str, Tensor]


def is_export(path: Path) -> bool:
    """Whether `path` is the directory of an mmsa export (and not a Hugging Face one)."""
    return (path / EXPORT_WEIGHTS).is_file() and not (path / "config.json").is_file()


def require_intact_export(path: Path, *names: str) -> None:
    """Raise `UserError` where files of the export `path` are not as they were written.

    A name ending in a slash is a folder. Warns where an early version wrote no digests.
    """
    require_intact(path, names, remedy=_COPY_AGAIN)


def export_state(path: Path, part: str) -> State:
    """The tensors of `part` ("text_encoder", "image_encoder") in the export `path`, without prefix.

    Raises `UserError` where the file is damaged, cannot be read or has no such part.
    """
    require_intact_export(path, EXPORT_WEIGHTS)
    state = read_state(path / EXPORT_WEIGHTS)
    prefix = part + "."
    own = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    if not own:
        parts = ", ".join(sorted({key.split(".")[0] for key in state}))
        raise UserError(
            f"the export {path} has no {part} (it contains: {parts}); give the export of a run "
            "that trained one"
        )
    return own


def export_encoder_config(path: Path, part: str) -> dict[str, Any] | None:
    """The architecture of `part` in the export's `config.yaml`; None if it has none.

    Raises `UserError` where that file is damaged.
    """
    require_intact_export(path, _EXPORT_CONFIG)
    try:
        content = parse_yaml((path / _EXPORT_CONFIG).read_text(encoding="utf-8"))
        return content["model"][part]["config"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def export_preprocessing(path: Path) -> ImagePreprocessing:
    """The image preprocessing of the export `path`.

    Raises `UserError` if its file is damaged or its model reads no images.
    """
    require_intact_export(path, PREPROCESSING_NAME)
    image = read_preprocessing(path).image
    if image is None:
        raise UserError(f"the export {path} reads no images; give the export of a run that does")
    return image


def read_state(path: Path) -> State:
    """A state dict from a `.safetensors` file or a `.pth` one (tensors only: no pickled code).

    Raises `UserError` where it cannot be read or is not a state dict.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"the weights {path} cannot be read ({first_line(error)}); give an export directory, "
            "or a .safetensors or .pth file that contains only tensors"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(
            f"{path} is not a state dict (names -> tensors); save model.state_dict() and give that"
        )
    return state


def load_strictly(module: nn.Module, state: State, *, where: str, assign: bool = False) -> None:
    """Copy `state` into `module`; `UserError` unless names, shapes and kinds agree completely.

    Floating-point numbers of one size are taken for those of another. Integers (a quantized
    checkpoint) are not: they would be read as weights of 0 and 1 and more. With `assign` the
    tensors of `state` themselves become those of `module`, which then shares their memory.
    """
    problems = misfits(module, state)
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(
            f"{where} do not fit the encoder of this configuration in {len(problems)} tensor(s) "
            f"of {len(module.state_dict().keys() | state.keys())}: "
            f"{'; '.join(problems[:4])}{more}. Use the encoder that they were made with"
        )
    module.load_state_dict(dict(state), strict=True, assign=assign)


def misfits(module: nn.Module, state: State) -> list[str]:
    """What keeps `state` from being loaded into `module`, tensor by tensor, as text."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [
        f"{name} holds {_kind(state[name])}, the model's are {_kind(own[name])}"
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    return problems


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex numbers"
    return "floating-point numbers" if tensor.is_floating_point() else "integers"
