"""A site's defaults: one YAML file, launch/site.yaml or the one given with --site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from mmsa.errors import UserError, one_or_many
from mmsa.foundation.parsing import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
SITE_FILE = ROOT / "launch" / "site.yaml"

Engine = Literal["ddp", "zero1", "zero2", "zero3"]
SbatchKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class Site(BaseModel):
    """Defaults of a cluster; None keeps the value in the job script."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0, description="0: processes on CPUs")
    cpus_per_task: int | None = Field(None, ge=1)
    mem: str | None = None
    time: str | None = None
    engine: Engine | None = None
    cpu_processes: int | None = Field(None, ge=1)
    max_restarts: int | None = Field(None, ge=0)
    max_retries: int | None = Field(None, ge=0)
    container: str | None = None
    cache: str | None = None
    setup: tuple[str, ...] = ()
    sbatch: dict[SbatchKey, str | int | bool] = {}

    @field_validator("mem", "time", mode="before")
    @classmethod
    def _as_slurm_writes_it(cls, value: Any, info: Any) -> Any:
        if isinstance(value, int) and info.field_name == "time":
            # YAML parses 04:00:00 without quotes as a base-60 number: seconds.
            return f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}"
        return str(value) if isinstance(value, int) else value


def load_site(file: Path | None, **options: Any) -> Site:
    """Read `file` (None: launch/site.yaml); `options` that are not None override its keys.

    Raises `UserError` with every unknown key and invalid value.
    """
    path = file or SITE_FILE
    try:
        content = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"the site file {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the site file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"the site file {path} must be a mapping; docs/slurm.md lists its keys")
    given = {key: value for key, value in options.items() if value is not None}
    of_site = content.get("sbatch") or {}
    if isinstance(of_site, dict):
        given["sbatch"] = {**of_site, **given.get("sbatch", {})}
    else:
        given.pop("sbatch", None)  # reported below
    try:
        return Site.model_validate({**content, **given})
    except ValidationError as error:
        problems = [
            _as_text(detail["loc"], detail["type"], detail["msg"]) for detail in error.errors()
        ]
        raise UserError(one_or_many(problems, where=f"the site file {path}")) from None


def _as_text(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(map(str, location))
    if location[-1] == "[key]":
        return (
            f"{location[0]}: {location[1]!r} is not the name of an option of sbatch; give its long "
            "name, such as constraint"
        )
    if kind == "extra_forbidden":
        return f"{where}: {message}; known keys: {', '.join(Site.model_fields)}"
    return f"{where}: {message}"
