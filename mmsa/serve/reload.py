"""A newer best export is taken into service without a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mmsa.errors import UserError
from mmsa.export_target import Target, resolve_export
from mmsa.serve.gate import logger
from mmsa.serve.model import ServedModel, load_served
from mmsa.serve.options import Options
from mmsa.serve.service import Service
from mmsa.serve.training import Training


async def watch(
    service: Service, source: Path, options: Options, training: Training | None
) -> None:
    """Every `reload_s` seconds, look whether `source` (a run) or the training that this server has
    started has another best export, and take it into service."""
    if not options.reload_s:
        return
    seen = service.model.target.directory
    while True:
        await asyncio.sleep(options.reload_s)
        trained = None if training is None else training.run_with_a_model()
        place = trained or source
        found = await asyncio.to_thread(_best, place)
        if found is None or found.directory == seen:
            continue
        seen = found.directory
        await _take(service, place, options)


def _best(place: Path) -> Target | None:
    """The best export of a run; None if there is none now, or `place` is a single export."""
    try:
        found = resolve_export(place, "best")
    except UserError:
        return None
    return found if found.name == "best" else None


async def _take(service: Service, place: Path, options: Options) -> None:
    now = service.model
    try:
        model: ServedModel = await asyncio.to_thread(load_served, place, options, now.device)
    except UserError as error:
        logger.error("the newer export is not taken into service: %s", error)
        return
    if model.digest == now.digest:
        return
    if model.label_names != now.label_names:
        logger.error(
            "the newer export is not taken into service: its classes are %s, and clients expect %s",
            ", ".join(model.label_names),
            ", ".join(now.label_names),
        )
        return
    service.replace(model)
    logger.info("now serving %s", model.digest[:12])
