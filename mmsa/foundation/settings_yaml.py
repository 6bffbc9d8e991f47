"""YAML of run configurations: numbers as in JSON, dates as strings, no duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmsa.errors import UserError
from mmsa.foundation.parsing import UniqueKeysLoader, parse_yaml
from mmsa.foundation.relative_paths import where_it_was_looked_for

# Numbers as YAML 1.2 and JSON have them. YAML 1.1, which PyYAML reads, takes 3e-5 for a string,
# 010 for 8 and 1:30 for 90.
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*$")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


class SettingsLoader(UniqueKeysLoader):
    """YAML whose numbers are decimal, and whose dates are strings: a run may be named by one."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def decimal(self, node: yaml.ScalarNode) -> int:
        """The value of an integer."""
        return int(self.construct_scalar(node))


class SettingsDumper(yaml.SafeDumper):
    """Quotes strings that `SettingsLoader` would take for numbers."""


SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
SettingsLoader.add_constructor("tag:yaml.org,2002:int", SettingsLoader.decimal)
for _yaml in (SettingsLoader, SettingsDumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(file: str) -> dict[str, Any]:
    """The content of a configuration file; `UserError` where it cannot be read."""
    try:
        content = parse_yaml(Path(file).read_text(encoding="utf-8"), SettingsLoader)
    except OSError as error:
        hint = where_it_was_looked_for(file) if isinstance(error, FileNotFoundError) else ""
        raise UserError(
            f"the configuration {file} cannot be read ({error.strerror}){hint}; "
            "complete ones are in launch/runs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration {file} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the configuration {file} must contain sections (run:, data:, ...)")
    return content


def dump_settings(settings: Mapping[str, Any]) -> str:
    """Nested settings as YAML, in their order; `read_yaml` reads it back as equal values."""
    return yaml.dump(dict(settings), Dumper=SettingsDumper, sort_keys=False, allow_unicode=True)


def in_words(value: Any) -> str:
    """A setting's value on one line, as one would write it in a configuration."""
    if isinstance(value, float):
        return repr(value)  # 5e-05, not 5.0e-05
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
