"""`search:` of STUDY.yaml: which settings are searched, in which ranges, and how.

A parameter is a setting of the run's configuration. Its value becomes an override such as
`optim.text_lr=3.2e-05`, which goes through the ordinary check of a configuration. Optuna is not
imported here: a study without a search does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmsa.foundation.settings_yaml import in_words

Value = float | int | str  # a categorical one is the YAML text of its choice
Values = Mapping[str, Value]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Parameter(_Part):
    """The range of one setting: exactly one of `float`, `int` and `categorical`."""

    floats: tuple[float, float] | None = Field(None, alias="float")
    ints: tuple[int, int] | None = Field(None, alias="int")
    categorical: list[Any] | None = Field(None, min_length=2)
    log: bool = False
    when: dict[str, Any] = Field(default_factory=dict)  # parameter -> its value, or a list of them

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        given = [self.floats is not None, self.ints is not None, self.categorical is not None]
        if sum(given) != 1:
            raise ValueError("expected one of float, int and categorical, as in {float: [0, 1]}")
        if self.bounds is not None:
            low, high = self.bounds
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"[{low}, {high}] is not a range; expected [low, high], low < high"
                )
            if self.log and low <= 0:
                raise ValueError(f"log: true needs a range above 0, and this begins at {low}")
        elif self.log:
            raise ValueError("log: true is for float and int")
        elif len(set(self.choices)) < len(self.choices):
            raise ValueError(f"categorical names one value twice: {', '.join(self.choices)}")
        return self

    @property
    def bounds(self) -> tuple[float, float] | tuple[int, int] | None:
        """[low, high], both included; None of a categorical one."""
        return self.floats or self.ints

    @property
    def choices(self) -> list[str]:
        """The choices as YAML text; none of a range."""
        return [as_text(choice) for choice in self.categorical or ()]

    def is_active(self, values: Values) -> bool:
        """Whether `values` of the parameters before it satisfy its `when`."""
        return all(
            name in values and as_text(values[name]) in _texts(wanted)
            for name, wanted in self.when.items()
        )


def _texts(wanted: Any) -> list[str]:
    return [as_text(each) for each in (wanted if isinstance(wanted, list) else [wanted])]


def as_text(value: Any) -> str:
    """A value as the text of an override; a string already is one, as in `data.shards=x`."""
    return value if isinstance(value, str) else in_words(value)


class TPE(_Part):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), as Optuna has it.

    Running trials count as bad ones (`constant_liar`), so that workers do not try the same values.
    """

    name: Literal["tpe"] = "tpe"
    n_startup_trials: int = Field(10, ge=1, description="random ones before the estimate is used")
    multivariate: bool = Field(False, description="estimate all parameters together")


class RandomSampling(_Part):
    """Independent draws from the ranges."""

    name: Literal["random"] = "random"


class GaussianProcess(_Part):
    """Expected improvement under a Gaussian process: for few, expensive trials."""

    name: Literal["gp"] = "gp"
    n_startup_trials: int = Field(10, ge=1)


class NoPruner(_Part):
    """Every trial is trained to its end."""

    name: Literal["none"] = "none"


class MedianPruner(_Part):
    """Stops a trial whose best value so far is below the median of the others at that validation.

    Source: Golovin et al., "Google Vizier" (KDD 2017), section 3.2, "median stopping rule".
    """

    name: Literal["median"] = "median"
    n_startup_trials: int = Field(5, ge=0, description="trials that end before any is stopped")
    n_warmup_steps: int = Field(0, ge=0, description="validations of a trial before it is judged")


class Asha(_Part):
    """Asynchronous successive halving (Li et al., MLSys 2020); rungs are numbers of validations."""

    name: Literal["asha"] = "asha"
    min_resource: int = Field(1, ge=1, description="validations before the first rung")
    reduction_factor: int = Field(4, ge=2, description="one in so many goes on at each rung")


class Hyperband(_Part):
    """Hyperband (Li et al., JMLR 18, 2018): successive halving from several first rungs."""

    name: Literal["hyperband"] = "hyperband"
    min_resource: int = Field(1, ge=1)
    max_resource: int | None = Field(None, ge=1, description="None: the longest finished trial's")
    reduction_factor: int = Field(3, ge=2)


Sampler = Annotated[TPE | RandomSampling | GaussianProcess, Field(discriminator="name")]
Pruner = Annotated[NoPruner | MedianPruner | Asha | Hyperband, Field(discriminator="name")]


class Confirm(_Part):
    """The best few trials, trained again with other seeds beside the variants."""

    best: int = Field(3, ge=1)
    seeds: list[int] = Field(default_factory=lambda: [1, 2, 3], min_length=1)

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"the seeds {seeds} name one of them twice")
        return seeds


class Search(_Part):
    """What is searched."""

    trials: int = Field(ge=1)
    space: dict[str, Parameter] = Field(min_length=1)
    sampler: Sampler = Field(default_factory=TPE)
    pruner: Pruner = Field(default_factory=NoPruner)
    seed: int = Field(0, ge=0, description="of the sampler, and `run.seed` of every trial")
    confirm: Confirm | None = None

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _conditions_come_first(self) -> Self:
        before: dict[str, Parameter] = {}
        for name, parameter in self.space.items():
            if "." not in name or "=" in name:
                raise ValueError(f"{name!r} is not a setting; expected section.key")
            for parent, wanted in parameter.when.items():
                if parent not in before:
                    raise ValueError(
                        f"{name}: when names {parent}, which is not a parameter before it"
                    )
                unknown = [
                    text
                    for text in _texts(wanted)
                    if before[parent].choices and text not in before[parent].choices
                ]
                if unknown:
                    raise ValueError(
                        f"{name}: when needs {parent}={unknown[0]}, which is none of its choices "
                        f"({', '.join(before[parent].choices)})"
                    )
            before[name] = parameter
        if self.confirm is not None and self.seed in self.confirm.seeds:
            raise ValueError(
                f"confirm.seeds has {self.seed}, the seed of the trials: its scores chose the "
                "best, so they cannot confirm them; name other seeds"
            )
        return self

    def overrides(self, values: Values) -> list[str]:
        """The values of a trial as settings of its configuration."""
        return [f"{name}={as_text(value)}" for name, value in values.items()]

    def corners(self) -> list[dict[str, Value]]:
        """Values that try the ends of every range and every choice, each alone.

        The other parameters have their first value. What a `when` needs is as it needs it.
        """
        found: list[dict[str, Value]] = []
        for name, parameter in self.space.items():
            for value in parameter.bounds or parameter.choices:
                values = self._completed({**self._needed(name), name: value})
                if values not in found:
                    found.append(values)
        return found

    def _needed(self, name: str) -> dict[str, Value]:
        """The values of other parameters under which a parameter is active."""
        needed: dict[str, Value] = {}
        for parent, wanted in self.space[name].when.items():
            value = wanted[0] if isinstance(wanted, list) else wanted
            is_choice = bool(self.space[parent].choices)
            needed |= self._needed(parent) | {parent: as_text(value) if is_choice else value}
        return needed

    def _completed(self, fixed: Values) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name, parameter in self.space.items():
            if name in fixed:
                values[name] = fixed[name]
            elif parameter.is_active(values):
                values[name] = (parameter.bounds or parameter.choices)[0]
        return values
