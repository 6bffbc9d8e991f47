"""The base of what settings are read into: pydantic's models, without true and false as numbers."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class SettingsModel(BaseModel):
    """pydantic takes true, on and yes (in YAML) for 1; a setting that is a number refuses them."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in given):
            types = _types(cls.model_fields[str(info.field_name)].annotation)
            if types & {int, float} and bool not in types:
                raise PydanticCustomError("number", "Input should be a number, not true or false")
        return value


def _types(annotation: Any) -> set[Any]:
    """All types that an annotation is made of."""
    inside = [_types(one) for one in get_args(annotation)]
    return set().union(*inside) if inside else {annotation}
