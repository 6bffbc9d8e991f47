"""Hugging Face configurations as the sizes that a run's configuration or an export writes down."""

from __future__ import annotations

from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.near_names import did_you_mean

HF_PREFIX = "hf:"

# Under this key are the settings for which a type has no default, but which its code reads where a
# configuration has them (`share_att_key` of DeBERTa-v3). Apart, so that a mistyped size is found.
EXTRA_KEY = "extra"


def hf_config_from_dict(content: dict[str, Any], *, section: str) -> Any:
    """A Hugging Face configuration from `{model_type: ..., sizes ..., extra: {...}}`.

    Raises `UserError` for an unknown model type or size, with the nearest known. What is under
    `extra` is given to the type as it is.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:
        near = did_you_mean(str(model_type), CONFIG_MAPPING)
        hint = f"; {near}" if near else " (bert, roberta, resnet, vit, ...)"
        raise UserError(
            f"{section}.config needs a model_type of transformers, not {model_type!r}{hint}"
        )
    extra = content.get(EXTRA_KEY, {})
    if not isinstance(extra, dict):
        raise UserError(
            f"{section}.config.{EXTRA_KEY}={extra!r} is not a mapping; give settings with names"
        )
    sizes = {key: v for key, v in content.items() if key not in ("model_type", EXTRA_KEY)}
    known = _known_sizes(AutoConfig.for_model(model_type))
    for key in sizes:
        if key not in known:
            near = did_you_mean(key, sorted(known))
            hint = f"; {near}" if near else ""
            raise UserError(
                f"{section}.config has no '{key}' for {model_type}{hint} (a setting that only the "
                f"model's code knows is written under {EXTRA_KEY})"
            )
    try:
        return AutoConfig.for_model(model_type, **sizes, **extra)
    except Exception as error:  # each class raises its own types
        raise UserError(f"{section}.config does not fit {model_type}: {error}") from None


def hf_config_to_dict(config: Any) -> dict[str, Any]:
    """What `hf_config_from_dict` needs to rebuild the architecture, without files or network.

    All settings that differ from those of the type's defaults, also nested ones and those that the
    type has no default for (under `extra`), except bookkeeping such as where they came from.
    """
    from transformers import AutoConfig

    default = AutoConfig.for_model(config.model_type)
    wanted, usual = _settings(config), _settings(default)
    sizes = {key: v for key, v in wanted.items() if key not in usual or usual[key] != v}
    sizes |= _not_rebuilt(config.model_type, sizes, wanted)
    known = _known_sizes(default)
    extra = {key: value for key, value in sizes.items() if key not in known}
    sizes = {key: value for key, value in sizes.items() if key in known}
    return {"model_type": config.model_type, **sizes, **({EXTRA_KEY: extra} if extra else {})}


# Not part of the architecture, at any depth; `dtype` would build a model in half precision, and the
# encoders neither keep caches nor return what lies between layers.
_BOOKKEEPING = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def _settings(config: Any) -> dict[str, Any]:
    """All settings of a configuration but bookkeeping and its type."""
    content: dict[str, Any] = _without_bookkeeping(config.to_dict())
    del content["model_type"]
    return content


def _without_bookkeeping(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: v for key, v in value.items() if key not in _BOOKKEEPING}
        return {key: _without_bookkeeping(v) for key, v in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_bookkeeping(item) for item in value]
    return value


def _not_rebuilt(model_type: str, sizes: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of the `wanted` settings that a configuration made of `sizes` alone would not have.

    Some types compute a setting from others. One that equals the type's default is not among
    `sizes`, and would be computed anew: Mistral-Nemo's heads of 128 would become 160 wide.
    """
    from transformers import AutoConfig

    try:
        rebuilt = _settings(AutoConfig.for_model(model_type, **sizes))
    except Exception:  # each class raises its own types: they fit together only as a whole
        return wanted
    return {key: v for key, v in wanted.items() if key not in rebuilt or rebuilt[key] != v}


def _known_sizes(default: Any) -> set[str]:
    return set(default.to_dict()) | set(default.attribute_map)
