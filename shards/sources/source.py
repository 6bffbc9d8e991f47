"""What a source is, and the registry of sources by the name that `python -m shards pack` takes.

A source is a class with its own `Settings`: the command-line options that it takes. Adding one is a
class under `@register_source`, here or in a module that `--import` names (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.near_names import did_you_mean
from mmsa.foundation.registry import Registry
from shards.example import RawData
from shards.sources.settings import SourceSettings


class Source:
    """A raw format. A subclass sets the class variables and defines `read`."""

    name: ClassVar[str]
    help: ClassVar[str]  # one line, for --help-sources
    Settings: ClassVar[type[SourceSettings]] = SourceSettings
    names_images: ClassVar[bool] = False  # by paths, which may be wrong

    def read(self, raw: Path, settings: Any) -> RawData:
        """Check the layout of `raw` and return its examples; `settings` is of `Settings`.

        Raises `UserError` where the layout is another one.
        """
        raise NotImplementedError

    def open_raw(self, raw: Path, options: Mapping[str, Any] | None = None) -> RawData:
        """As `read`, with checked settings, which it adds to the facts for the manifest.

        `options` are those that the user gave, by their names in `Settings`. Raises `UserError`,
        also for options that this source does not take.
        """
        settings = self._settings(options or {})
        data = self.read(raw, settings)
        own = data.facts
        known: dict[str, Any] = {"normalize": list(settings.normalize)}
        if settings.max_characters != MAX_CHARACTERS:
            known["max_characters"] = settings.max_characters
        return replace(data, facts=lambda: {**known, **own()})

    def _settings(self, options: Mapping[str, Any]) -> SourceSettings:
        try:
            return self.Settings(**options)
        except ValidationError as error:
            problems = [self._problem(detail) for detail in error.errors()]
        raise UserError(one_or_many(problems, where="reading"))

    def _problem(self, detail: Any) -> str:
        name = str(detail["loc"][0])
        flag = f"--{name.replace('_', '-')}"
        if detail["type"] == "extra_forbidden":
            taken = ", ".join(f"--{n.replace('_', '-')}" for n in self.Settings.model_fields)
            return f"{flag} does not apply to the source {self.name}, which takes {taken}"
        value = detail["input"]
        shown = ",".join(map(str, value)) if isinstance(value, tuple | list) else value
        return f"{flag} {shown} {detail['msg'].removeprefix('Value error, ')}"


SOURCES: Registry[type[Source]] = Registry("source")

S = TypeVar("S", bound=type[Source])


def register_source(source: S) -> S:
    """Class decorator: make a source known by its name. A name cannot be taken twice."""
    SOURCES.add(source.name, source)
    return source


def get_source(name: str) -> Source:
    """The source called `name`; `UserError` with the known names where there is none."""
    if name not in SOURCES:
        known = f"{did_you_mean(name, SOURCES)} known: {', '.join(SOURCES)}".strip()
        raise UserError(
            f"unknown source '{name}'; {known}. A source of your own needs --import MODULE"
        )
    return SOURCES[name]()
