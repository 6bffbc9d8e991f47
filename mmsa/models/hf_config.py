"""Hugging Face configurations as the sizes that a run's configuration or an export writes down."""

from __future__ import annotations

import difflib
from typing import Any

from mmsa.errors import UserError

HF_PREFIX = "hf:"


def hf_config_from_dict(content: dict[str, Any], *, section: str) -> Any:
    """A Hugging Face configuration from `{model_type: ..., sizes ...}`.

    Raises `UserError` for an unknown model type or size, with the nearest known.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f"; did you mean {near[0]}?" if near else " (bert, roberta, resnet, vit, ...)"
        raise UserError(
            f"{section}.config needs a model_type of transformers, not {model_type!r}{hint}"
        )
    sizes = {key: value for key, value in content.items() if key != "model_type"}
    known = _known_sizes(AutoConfig.for_model(model_type))
    for key in sizes:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{section}.config has no '{key}' for {model_type}{hint}")
    try:
        return AutoConfig.for_model(model_type, **sizes)
    except Exception as error:  # each class raises its own types
        raise UserError(f"{section}.config does not fit {model_type}: {error}") from None


def hf_config_to_dict(config: Any) -> dict[str, Any]:
    """The sizes of a Hugging Face configuration that differ from its type's defaults.

    `hf_config_from_dict` rebuilds the same architecture from them, without files or network.
    """
    from transformers import AutoConfig

    default = AutoConfig.for_model(config.model_type)
    known = _known_sizes(default)
    default_sizes = default.to_dict()
    sizes = {
        key: value
        for key, value in config.to_dict().items()
        if key in known and key not in _NO_SIZES and default_sizes.get(key) != value
    }
    return {"model_type": config.model_type, **sizes}


# Not part of the architecture; `dtype` would build a model in half precision.
_NO_SIZES = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "problem_type",
    "torch_dtype",
    "transformers_version",
}


def _known_sizes(default: Any) -> set[str]:
    return set(default.to_dict()) | set(default.attribute_map)
