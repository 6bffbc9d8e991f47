"""Overrides (`section.key=value`) into nested settings, and what pydantic finds wrong, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mmsa.foundation.near_names import nearest_name
from mmsa.foundation.parsing import parse_yaml
from mmsa.foundation.settings_yaml import SettingsLoader


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set `a.b=value` in `raw`; returns a problem as text, or None."""
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return f"'{override}' is not an override; write section.key=value, as in optim.text_lr=3e-5"
    try:
        value = parse_yaml(text, SettingsLoader)
    except yaml.YAMLError as error:
        shown = override if len(override) <= 200 else f"{override[:200]}..."
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return f"the value of '{shown}' is not valid YAML ({problem}); quote it"
    node = raw
    for part in parts[:-1]:
        child = node.get(part)
        if not isinstance(child, dict):
            child = node[part] = {}
        node = child
    node[parts[-1]] = value
    return None


# The type of a pydantic error about a value that may hold a secret.
CREDENTIAL = "credential"


def problems_in(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One problem for each setting of the model `root`, as text, also where a value fits none of a
    union's types."""
    problems: dict[str, str] = {}
    for detail in error.errors():
        path, known = _setting(detail["loc"], root)
        dotted = ".".join(path)
        if detail["type"] == "extra_forbidden":
            hint = _nearest_key(path, known) or f"known here: {', '.join(known)}"
            problems[dotted] = f"unknown key {dotted}; {hint}"
        elif detail["type"] == CREDENTIAL:  # what was given is not repeated
            problems[dotted] = f"{dotted}: {detail['msg']}"
        elif dotted in problems:
            problems[dotted] += f", or: {detail['msg']}"
        else:
            problems[dotted] = f"{dotted}={detail['input']!r}: {detail['msg']}"
    return list(problems.values())


def unknown_key(location: Sequence[str | int], root: type[BaseModel]) -> str:
    """A key that the model `root` has not, as text: with the nearest one and all that fit there;
    `location` is pydantic's."""
    path, known = _setting(location, root)
    hint = f"{_nearest_key(path, known)} known here: {', '.join(known)}".strip()
    return f"unknown key {'.'.join(path)}; {hint}"


def _fields(model: Any) -> dict[str, Any]:
    """The fields by the names that they have in a file; none of what is not a model."""
    fields = getattr(model, "model_fields", {})
    return {field.alias or name: field for name, field in fields.items()}


def _named(name: str, models: Iterable[Any]) -> Any:
    """The one of `models` that pydantic means by `name`: its class's name, or its tag, the default
    of a field. None where another type of the union is meant, as `str`."""
    return next(
        (
            model
            for model in models
            if name == model.__name__
            or name in [field.default for field in model.model_fields.values()]
        ),
        None,
    )


def _nearest_key(path: list[str], known: list[str]) -> str:
    near = nearest_name(path[-1], known)
    return f"did you mean {'.'.join([*path[:-1], near])}?" if near else ""


def _setting(location: Iterable[str | int], root: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Path to the failing field and its valid siblings; indices inside a value are dropped.

    `location` is pydantic's. It may lead through a `dict` of models, or through a union of models,
    where it has the name of the model that was meant.
    """
    path: list[str] = []
    known: list[str] = []
    inside: Any = root
    for part in map(str, location):
        if fields := _fields(inside):
            known = list(fields)
            path.append(part)
            inside = _not_none(fields[part].annotation) if part in fields else None
        elif isinstance(inside, UnionType) and _models(inside):
            inside = _named(part, _models(inside))
        elif get_origin(inside) is dict and (
            _fields(values := get_args(inside)[-1]) or _models(values)
        ):
            path.append(part)
            inside = values
        else:
            break
    return path, known


def _models(union: Any) -> list[Any]:
    """The models among the types of a union."""
    return [one for one in get_args(union) if _fields(one)]


def _not_none(annotation: Any) -> Any:
    """The type T of `T | None`; any other type as it is."""
    types = [one for one in get_args(annotation) if one is not type(None)]
    is_optional = isinstance(annotation, UnionType) and len(types) == 1
    return types[0] if is_optional else annotation
