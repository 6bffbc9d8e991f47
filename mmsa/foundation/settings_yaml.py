"""YAML of run configurations: numbers as in JSON, dates as strings, no duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmsa.errors import UserError

# Numbers as YAML 1.2 and JSON have them. YAML 1.1, which PyYAML reads, takes 3e-5 for a string.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


_MAX_DEPTH, _MAX_VALUES = 32, 100_000
_TOO_DEEP = f"it is nested more than {_MAX_DEPTH} levels deep"


class SettingsLoader(yaml.SafeLoader):
    """YAML whose dates are strings (a run may be named by one) and whose duplicate keys are errors:
    plain YAML silently keeps the last one."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.YAMLError(f"the key '{key}' appears twice{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class SettingsDumper(yaml.SafeDumper):
    """Quotes strings that `SettingsLoader` would take for numbers."""


for _yaml in (SettingsLoader, SettingsDumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value that `text` is; `yaml.YAMLError` for everything that cannot be settings."""
    try:
        content = yaml.load(text, Loader=SettingsLoader)
    except ValueError as error:  # of a tag such as !!int, or of a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    _check_size(content)
    return content


def _check_size(content: Any) -> None:
    """Raise `yaml.YAMLError` for what is nested too deeply or has too many values: by `&name` and
    `*name` a few lines can contain themselves, or billions of values."""
    layer, depth, number = [content], 0, 0
    while layer:
        depth, number = depth + 1, number + len(layer)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(_TOO_DEEP)
        if number > _MAX_VALUES:
            raise yaml.YAMLError(f"it has more than {_MAX_VALUES} values")
        below: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
            if len(below) > _MAX_VALUES:
                break
        layer = below


def read_yaml(file: str) -> dict[str, Any]:
    """The content of a configuration file; `UserError` where it cannot be read."""
    try:
        content = parse_yaml(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the configuration {file} cannot be read ({error.strerror}); "
            "complete ones are in launch/runs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration {file} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the configuration {file} must contain sections (run:, data:, ...)")
    return content


def in_words(value: Any) -> str:
    """A setting's value on one line, as one would write it in a configuration."""
    text = yaml.dump(
        value,
        Dumper=SettingsDumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def flat_keys(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key` -> value, in their order; an empty section has no keys."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
