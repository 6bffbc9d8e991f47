"""What the sections of the configuration are made of: their base class, and kinds of values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from mmsa.foundation.durations import seconds_of
from mmsa.foundation.settings_model import SettingsModel
from mmsa.foundation.sizes import bytes_of

Beta = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, BeforeValidator(bytes_of), Field(gt=0)]
Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0)]


class Section(SettingsModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def unquoted(word: str) -> BeforeValidator:
    """Of a setting that takes `word`, `no` or `off`, which YAML reads as false without quotes."""

    def restored(value: Any) -> Any:
        return word if value is False else value

    return BeforeValidator(restored)
