"""STUDY.yaml: which runs are trained, and what is asked of them.

A study has variants, or a search (launch/study/search/settings.py), or both: then the best few
trials become variants when all have ended.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from launch.study.search.settings import Search
from mmsa.errors import UserError
from mmsa.extensions import as_options
from mmsa.foundation.overrides import unknown_key
from mmsa.foundation.parsing import parse_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
Settings = list[Any]  # `section.key=value`, or a list of such (another variant's, by YAML's `*`)


def flat(settings: Sequence[Any]) -> list[str]:
    """The settings as one list: a list among them is another variant's."""
    found: list[str] = []
    for setting in settings:
        found += flat(setting) if isinstance(setting, list) else [str(setting)]
    return found


class Folds(BaseModel):
    """The folds of a protocol, packed from raw data into OUT/shards."""

    model_config = ConfigDict(extra="forbid")

    source: str  # as for `python -m shards pack`
    raw: str = ""  # the raw data; "" in a file for all: then --raw names it
    protocol: str = "kfold:5"
    options: list[str] = Field(default_factory=list)  # of `pack`
    only: list[int] | None = None  # the first answer may come from a few of them


class Study(BaseModel):
    """A question as its file states it."""

    model_config = ConfigDict(extra="forbid")

    question: str = ""
    base: str | dict[str, Any] = Field(default_factory=dict)
    settings: Settings = Field(default_factory=list)
    variants: dict[str, Settings] = Field(default_factory=dict)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    folds: Folds | None = None
    search: Search | None = None
    metric: str = "weighted_f1"
    baseline: str = ""
    _imports: list[str] = PrivateAttr(default_factory=list)

    @field_validator("settings", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return flat(value) if isinstance(value, list) else value

    @field_validator("variants", mode="before")
    @classmethod
    def _all_flat(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: flat(settings) if isinstance(settings, list) else settings or []
            for name, settings in value.items()
        }

    @model_validator(mode="after")
    def _names(self) -> Study:
        self._fits_its_search()
        for name in self.variants:
            if not _NAME.fullmatch(str(name)):
                raise ValueError(
                    f"a variant is called {name!r}; its name is a directory's, of letters, digits "
                    "and _ . + -"
                )
        if self.baseline and self.baseline not in self.variants:
            known = ", ".join(self.variants)
            raise ValueError(f"the baseline is {self.baseline}, which is no variant ({known})")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"the seeds {self.seeds} name one of them twice")
        self._settings_name_no_part_of_the_study()
        return self

    def _fits_its_search(self) -> None:
        if self.search is None:
            if not self.variants:
                raise ValueError(
                    "variants: expected at least one, as in {default: []}, or a search"
                )
            return
        if self.folds is not None:
            raise ValueError("a search cannot have folds: its trials share one validation split")
        if "seeds" in self.model_fields_set:
            raise ValueError(
                "a search takes no `seeds`: its trials have search.seed, and what is trained again "
                "has search.confirm.seeds"
            )
        taken = [name for name in self.variants if str(name).startswith("trial-")]
        if taken:
            raise ValueError(f"the variant {taken[0]} is called like a trial of the search")
        if self.search.confirm is None:
            if self.variants:
                raise ValueError(
                    "a search with variants needs search.confirm: the best trials are trained "
                    "again beside them"
                )
            return
        self.variants = self.variants or {"default": []}
        self.seeds = self.search.confirm.seeds

    def _settings_name_no_part_of_the_study(self) -> None:
        taken = {"run.dir": "each run has its own", "run.seed": "the seeds are `seeds`"}
        if self.folds is not None:
            taken["data.shards"] = "the shards are those of the folds"
        searched = [] if self.search is None else [f"{name}=" for name in self.search.space]
        variants = [one for each in self.variants.values() for one in each]
        for setting in (*self.settings, *variants, *searched):
            key, is_setting, _ = setting.partition("=")
            if not is_setting:
                raise ValueError(f"{setting!r} is not a setting; expected section.key=value")
            if key in taken:
                raise ValueError(f"{setting} cannot be set: {taken[key]}")

    @property
    def imports(self) -> list[str]:
        """The modules of `--import`, which each process of the study needs. The file has none:
        reading it must not run code."""
        return self._imports

    def training_words(self, base: Path | str, overrides: Sequence[str]) -> list[str]:
        """The arguments of train.py for a run with `overrides` of the file `base`."""
        return ["--config", str(base), *overrides, *as_options(self._imports)]

    @property
    def compared_with(self) -> str:
        """The variant that the others are compared with: the named one, or the first, or ""."""
        return self.baseline or next(iter(self.variants), "")

    def with_variants(self, more: dict[str, list[str]]) -> Study:
        """The study with further variants: the best trials of its search."""
        return self.model_copy(update={"variants": {**self.variants, **more}})

    def digest_of(self, variant: str) -> str:
        """16 hex digits of all that decides what the runs of a variant compute, without seeds."""
        base = self.base
        if isinstance(base, str):
            base = Path(base).read_text(encoding="utf-8")
        folds = None if self.folds is None else self.folds.model_dump(exclude={"only", "raw"})
        content = [base, self.settings, self.variants[variant], folds]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_study(
    file: Path,
    overrides: Sequence[str] = (),
    raw: str | None = None,
    *,
    packs: bool = True,
    imports: Sequence[str] = (),
) -> Study:
    """Read and check STUDY.yaml; `overrides` follow its `settings`, `raw` is used for `folds.raw`.

    Without `packs` the raw data may be unknown. `imports` are modules that have been imported.
    Raises `UserError` with every problem of the file.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the study {file} cannot be read ({error.strerror}); expected a YAML file with "
            "variants, such as those in launch/studies/"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} has no keys; expected base and variants, as in launch/studies/")
    if isinstance(content.get("settings", []), list):
        content["settings"] = [*content.get("settings", []), *overrides]
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        problems = [_as_text(one) for one in error.errors()]
        raise UserError(f"{file}: " + "; ".join(problems)) from None
    if study.folds is not None:
        study.folds.raw = raw or study.folds.raw
        if packs and not study.folds.raw:
            raise UserError(
                f"{file} has folds of {study.folds.source} and does not say where its raw data is; "
                "give --raw DIR"
            )
    elif raw is not None:
        raise UserError(f"--raw {raw}: {file} has no folds to pack from it; leave it out")
    if isinstance(study.base, str) and not Path(study.base).is_file():
        raise UserError(f"{file}: base {study.base} does not exist; name a run configuration")
    study._imports = list(imports)
    return study


def _as_text(problem: Any) -> str:
    """One problem that pydantic has found."""
    if problem["type"] == "extra_forbidden":
        return unknown_key(problem["loc"], Study)
    where = ".".join(map(str, problem["loc"])) or "the study"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
