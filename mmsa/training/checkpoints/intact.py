"""Which checkpoints of a run are as they were written, and which of them the run resumes from.

    choice = choose_checkpoint(run_dir)  # reads every byte of the newest, of the next if need be
    choice.checkpoint                    # the newest intact one
    choice.damaged                       # newer ones, each with what is wrong

Reads files and nothing else, so every rank finds the same before the process group exists. Does not
import torch: `python -m mmsa verify` starts at once.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.calibration import read_calibration
from mmsa.checkpoint_folders import COMPLETE_NAME, STATE_NAME, checkpoint_directories
from mmsa.errors import UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME, TOKENIZER_NAME, WEIGHTS_NAME, read_export
from mmsa.foundation.digests import (
    DIGESTS_NAME,
    Advance,
    Listing,
    UnreadableListing,
    problems_of,
    read_listing,
    spelt_out,
)
from mmsa.foundation.parsing import parse_json

logger = logging.getLogger("mmsa")

OPTIMIZER_NAME = "optimizer.safetensors"
COPY_NAME = "run.yaml"  # the run's config.yaml; early versions had none
CHECKPOINT_FORMAT = {"format": "mmsa-checkpoint", "version": 1}
DAMAGED_PREFIX = "damaged-"  # of a checkpoint that a run has passed over
_REQUIRED = (STATE_NAME, OPTIMIZER_NAME, f"{CHECKPOINT_EXPORT_NAME}/{WEIGHTS_NAME}")
_SHOWN = 3  # damaged files of a checkpoint named in a message


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used, and why."""

    checkpoint: Path
    problems: tuple[str, ...]

    def in_words(self) -> str:
        more = len(self.problems) - _SHOWN
        shown = [*self.problems[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
        return f"{self.checkpoint.name} is damaged: {'; '.join(shown)}"


@dataclass(frozen=True)
class Choice:
    """The newest intact checkpoint of a run, None if it has none, and the damaged newer ones."""

    run_dir: Path
    checkpoint: Path | None
    damaged: tuple[Damaged, ...] = ()

    @property
    def any_exists(self) -> bool:
        """Whether the run has written a checkpoint, intact or not."""
        return self.checkpoint is not None or bool(self.damaged)

    def require(self) -> None:
        """Raise `UserError` where there are checkpoints and none is intact."""
        if self.checkpoint is None and self.damaged:
            listed = ". ".join(damaged.in_words() for damaged in self.damaged)
            raise UserError(
                f"no checkpoint of {self.run_dir} is intact. {listed}. Copy one of them again from "
                f"a backup; or start again from step 0: remove {self.run_dir / 'checkpoints'}, or "
                "choose another run.dir"
            )

    def warn(self) -> None:
        """Log what is passed over, and that an early version's files cannot be checked."""
        for damaged in self.damaged:
            logger.warning(
                "%s. It is passed over, and kept as %s to be looked at; remove it when you like. "
                "Check the disk",
                damaged.in_words(),
                set_aside_path(damaged.checkpoint),
            )
        if self.checkpoint is not None:
            if self.damaged:
                logger.warning("resuming from %s, the newest intact one", self.checkpoint.name)
            if not has_digests(read_listing(self.checkpoint / COMPLETE_NAME)):
                logger.warning(
                    "%s was written by an early version of mmsa, without digests: only the sizes "
                    "of its files could be checked",
                    self.checkpoint.name,
                )

    def set_aside(self) -> None:
        """Rename the damaged checkpoints, so that they count as none; main rank, holding the lock.

        What is renamed is not read again at each start, and the job script sees new checkpoints as
        new although a damaged one had a later step.
        """
        for damaged in self.damaged:
            aside = set_aside_path(damaged.checkpoint)
            shutil.rmtree(aside, ignore_errors=True)
            if damaged.checkpoint.exists():
                os.replace(damaged.checkpoint, aside)


def set_aside_path(checkpoint: Path) -> Path:
    """Where a damaged checkpoint is kept."""
    return checkpoint.with_name(DAMAGED_PREFIX + checkpoint.name)


def choose_checkpoint(run_dir: Path) -> Choice:
    """Find the newest intact checkpoint of a run; the older ones are not read."""
    damaged: list[Damaged] = []
    for checkpoint in checkpoint_directories(run_dir):
        problems = damage_of(checkpoint)
        if not problems:
            return Choice(run_dir, checkpoint, tuple(damaged))
        damaged.append(Damaged(checkpoint, tuple(problems)))
    return Choice(run_dir, None, tuple(damaged))


def damage_of(checkpoint: Path, advance: Advance | None = None) -> list[str]:
    """What is wrong with a checkpoint, as clauses; empty if it is as it was written.

    Compares every file with its digest. Where an early version noted sizes only, sizes are compared
    and each file must be of its format.
    """
    try:
        listing = read_listing(checkpoint / COMPLETE_NAME)
    except FileNotFoundError:
        return [f"{COMPLETE_NAME} is missing"]
    except UnreadableListing as error:
        return [str(error)]
    problems = [f"{name} is not in {COMPLETE_NAME}" for name in _REQUIRED if name not in listing]
    problems += problems_of(checkpoint, listing, advance=advance).values()
    if not problems and not has_digests(listing):
        problems = [what for name in listing if (what := _format_problem(checkpoint, name))]
    return problems or _state_problems(checkpoint, listing)


def damage_of_export(
    export: Path, advance: Advance | None = None, *, content: bool = True
) -> list[str]:
    """What is wrong with an export, as clauses; `content` False compares sizes only.

    Its listed files, files that were added to its tokenizer, and its calibration, which holds its
    own digest. One of an early version, without digests, must be readable.
    """
    found: list[str] = []
    try:
        listing = read_listing(export / DIGESTS_NAME)
        names = spelt_out(export, listing, [*listing, f"{TOKENIZER_NAME}/"])
        found += problems_of(export, listing, names, content=content, advance=advance).values()
        read_calibration(export)
    except FileNotFoundError:
        try:
            read_export(export)
        except UserError as error:
            found.append(str(error))
    except (UnreadableListing, UserError) as error:
        found.append(str(error))
    return found


def has_digests(listing: Listing) -> bool:
    """Whether a list has digests; those of early versions have sizes only."""
    return all(file.sha256 is not None for file in listing.values())


def _format_problem(directory: Path, name: str) -> str | None:
    """Whether a file is of the format that its name says; a clause if not."""
    from safetensors import SafetensorError, safe_open

    path = directory / name
    try:
        if path.suffix == ".json":
            parse_json(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{name} cannot be read ({str(error) or type(error).__name__})"
    return None


def _state_problems(checkpoint: Path, listing: Listing) -> list[str]:
    """What `state.json` lacks, and the files of ranks that it speaks of."""
    state = read_state_content(checkpoint)
    if isinstance(state, str):
        return [state]
    if not isinstance(state.get("step"), int) or not isinstance(state.get("world_size"), int):
        return [f"{STATE_NAME} does not say its step and world size"]
    names = map(statistics_name, range(state["world_size"]))
    return [f"{name} is not in {COMPLETE_NAME}" for name in names if name not in listing]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The content of `state.json`; `UserError` where there is none, or another format version."""
    state = read_state_content(checkpoint)
    if isinstance(state, str):
        raise UserError(f"{checkpoint} is damaged: {state}. Use another checkpoint")
    found = {key: state.get(key) for key in CHECKPOINT_FORMAT}
    if found != CHECKPOINT_FORMAT:
        raise UserError(
            f"{checkpoint} has format {found['format']} {found['version']}; this program reads "
            f"{CHECKPOINT_FORMAT['format']} {CHECKPOINT_FORMAT['version']}. Resume with the "
            f"version of mmsa that wrote it ({state.get('code_version', 'an early one')}), or "
            "choose another run.dir"
        )
    return state


def read_state_content(checkpoint: Path) -> dict[str, Any] | str:
    """The JSON object in `state.json`; a clause that says what is wrong where there is none."""
    try:
        state = parse_json((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{STATE_NAME} cannot be read ({error})"
    return state if isinstance(state, dict) else f"{STATE_NAME} does not hold a JSON object"


def statistics_name(rank: int) -> str:
    """The file of a rank's own BatchNorm statistics."""
    return f"statistics-{rank:05d}.safetensors"
