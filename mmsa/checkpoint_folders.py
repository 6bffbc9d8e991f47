"""The checkpoints of a run as directories: which exist and which are whole, by sizes alone."""

from __future__ import annotations

from pathlib import Path

from mmsa.foundation.digests import UnreadableListing, problems_of, read_listing

STATE_NAME = "state.json"  # what the step does not determine
COMPLETE_NAME = "COMPLETE"  # each file with its size and digest, written last


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest first. Their content is not read."""
    return [path for path in checkpoint_directories(run_dir) if is_whole(path)]


def checkpoint_directories(run_dir: Path) -> list[Path]:
    """Every `checkpoints/step-N` of a run, whole or not, the newest first."""
    found = (run_dir / "checkpoints").glob("step-*")
    named = (path for path in found if path.name.removeprefix("step-").isdecimal())
    return sorted(named, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step of a directory `step-N`."""
    return int(folder.name.removeprefix("step-"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file listed in the checkpoint's `COMPLETE` exists with its size."""
    try:
        listing = read_listing(checkpoint / COMPLETE_NAME)
    except (OSError, UnreadableListing):
        return False
    return STATE_NAME in listing and not problems_of(checkpoint, listing, content=False)
