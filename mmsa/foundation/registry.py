"""Registries of parts by name: fusion heads, losses, encoder families, trackers, sources.

A part is a class. Most have their own settings, a pydantic model that is checked before anything is
built. Parts of other projects register in the same way, in a module that `--import` loads
(docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from mmsa.errors import UserError
from mmsa.foundation.near_names import did_you_mean, nearest_name
from mmsa.foundation.settings_model import SettingsModel

Part = TypeVar("Part")
Named = TypeVar("Named", bound=Any)  # a class with a class variable `name`

IMPORT_HINT = "for one of your own, add --import MODULE"


class PartSettings(SettingsModel):
    """Base of a part's own settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Registry(dict[str, Part]):
    """Name -> part, in the order of registration. `kind` ("fusion head") is for messages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, part: Part) -> None:
        """Register `part` as `name`; `UserError` for a name that is taken.

        The same class again, of a module that was imported a second time, takes its own place.
        """
        if name in self and _place(self[name]) != _place(part):
            raise UserError(
                f"{self.kind} '{name}' is registered twice: by {_place(self[name])} and by "
                f"{_place(part)}; rename one of them"
            )
        self[name] = part

    def register(self, name: str) -> Callable[[Named], Named]:
        """Class decorator: the class becomes known by `name`, which it gets as its `name` too.

        Raises `UserError` for a name that is taken.
        """

        def register(part: Named) -> Named:
            self.add(name, cast(Part, part))
            part.name = name
            return part

        return register


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: the nearest known one, else all of them."""
    names = list(known)
    return did_you_mean(name, names) or f"known: {', '.join(names)}; {IMPORT_HINT}"


def settings_problems(
    settings_class: type[BaseModel], values: dict[str, Any], *, section: str, part: str
) -> list[str]:
    """What is wrong with a part's own settings, as text; `part` is "the fusion concat", say."""
    try:
        settings_class.model_validate(values)
    except ValidationError as error:
        known = list(settings_class.model_fields)
        return [_as_text(detail, known, section, part) for detail in error.errors()]
    return []


def section_of(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """A section of raw settings; empty where something else is in its place."""
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def modules_outside(parts: Iterable[Callable[..., Any]]) -> list[str]:
    """The modules of those `parts` that are not from this package, sorted."""
    modules = {part.__module__ for part in parts}
    return sorted(module for module in modules if module.split(".")[0] != "mmsa")


def _as_text(detail: Any, known: list[str], section: str, part: str) -> str:
    path = [str(one) for one in detail["loc"]]
    dotted = ".".join([section, *path])
    if detail["type"] == "extra_forbidden":
        near = nearest_name(path[-1], known)
        hint = f"did you mean {section}.{near}?" if near else ", ".join(known)
        return f"unknown key {dotted} for {part}; {hint or 'it has no settings'}"
    if detail["type"] == "missing":
        return f"{dotted} is not given; {part} needs it"
    if not path:  # a rule over several settings
        return f"{dotted}: {detail['msg'].removeprefix('Value error, ')}"
    return f"{dotted}={detail['input']!r}: {detail['msg']}"


def _place(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"
