"""From the configuration of a fusion head to the head, and what can be wrong with it."""

from __future__ import annotations

from typing import Any

from mmsa.config import FusionConfig
from mmsa.errors import UserError, one_or_many
from mmsa.foundation.registry import nearest, section_of, settings_problems
from mmsa.models.fusion.head import FUSIONS, FusionHead


def fusion_class(name: str) -> type[FusionHead]:
    """The class of the head `name`; `UserError` with the nearest name where there is none."""
    if name not in FUSIONS:
        raise UserError(_unknown_fusion(name))
    return FUSIONS[name]


def build_fusion(
    config: FusionConfig, text_width: int, image_width: int, num_outputs: int
) -> FusionHead:
    """Build the head of `config`; the width of a modality that it does not use is ignored (0).

    Raises `UserError` for an unknown name and for settings that do not fit the head.
    """
    head_class = fusion_class(config.name)
    problems = _settings_problems(head_class, config.settings)
    if problems:
        raise UserError(one_or_many(problems, where="model.fusion"))
    settings = head_class.Settings(**config.settings)
    build: Any = head_class  # its constructor is wider than nn.Module's
    head: FusionHead = build(settings, text_width, image_width, num_outputs)
    return head


def fusion_problems(raw: dict[str, Any]) -> list[str]:
    """A check for `mmsa.config.load_config`: the fusion's name and its own settings."""
    chosen = section_of(section_of(raw, "model"), "fusion")
    name = chosen.get("name", FusionConfig().name)
    if name not in FUSIONS:
        return [_unknown_fusion(str(name))]
    settings = {key: value for key, value in chosen.items() if key != "name"}
    problems = _settings_problems(FUSIONS[name], settings)
    if settings.get("batch_norm") is True and section_of(raw, "train").get("micro_batch_size") == 1:
        problems.append(
            "train.micro_batch_size=1 with model.fusion.batch_norm=true: a batch norm cannot train "
            "on one sample; use a micro-batch of at least 2, or batch_norm: false"
        )
    return problems


def _unknown_fusion(name: str) -> str:
    return f"model.fusion.name={name!r} is not a fusion; {nearest(name, FUSIONS)}"


def _settings_problems(head_class: type[FusionHead], settings: dict[str, Any]) -> list[str]:
    return settings_problems(
        head_class.Settings, settings, section="model.fusion", part=f"the fusion {head_class.name}"
    )
