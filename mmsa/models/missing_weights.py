"""Pretrained files that are not on this machine: all of a model named at once, with one command
that fetches all of them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from mmsa.config import ModelConfig
from mmsa.errors import one_or_many
from mmsa.extensions import as_options
from mmsa.hub import NotOnThisMachine

# What decides which files a model needs.
_SETTINGS = {
    "text_encoder": ("name", "weights", "tokenizer", "config"),
    "image_encoder": ("name", "weights", "config"),
    "fusion": ("name",),
}


def missing_weights(
    config: ModelConfig, problems: list[str], modules: list[str]
) -> NotOnThisMachine:
    """The error that names everything that is missing; `problems` are sentences.

    `modules` as for `prefetch_command`.
    """
    named = list(dict.fromkeys(problems))
    what = one_or_many(named, where="the model cannot be built")
    return NotOnThisMachine(
        *named,
        message=f"{what}. Where there is a network, with the same cache, this fetches all of it: "
        f"{prefetch_command(config, modules)} - or give directories, or weights: none",
    )


def prefetch_command(config: ModelConfig, modules: list[str]) -> str:
    """The shell command that downloads whatever a model of `config` needs; `modules` are others'
    that register its parts."""
    default, words = ModelConfig(), []
    for section, keys in _SETTINGS.items():
        for key in keys:
            value = getattr(getattr(config, section), key)
            # The names always, so that one can see what is fetched.
            if key == "name" or value != getattr(getattr(default, section), key):
                words.append(f"model.{section}.{key}={_as_yaml(value)}")
    return shlex.join(["python", "-m", "launch", *as_options(modules), "prefetch", *words])


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
