"""`python -m mmsa verify PATH`: compares the files of a run, an export or a checkpoint with what
was written, without running anything.

Exit code 0 if all are intact, 2 if any is damaged. Does not import torch.
"""

from __future__ import annotations

import argparse
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsa.checkpoint_folders import COMPLETE_NAME, STATE_NAME, checkpoint_directories, step_of
from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME, CONFIG_NAME, FACTS_NAME
from mmsa.foundation.digests import (
    DIGESTS_NAME,
    Advance,
    files_below,
    read_listing,
)
from mmsa.process.progress import Progress
from mmsa.process.status import STATUS_NAME
from mmsa.training.checkpoints.intact import damage_of, damage_of_export, has_digests
from mmsa.training.checkpoints.resume import is_finished
from mmsa.training.checkpoints.run_config import config_problem

_MIB = 2**20


@dataclass(frozen=True)
class Part:
    """A directory that was written as one, and its name in the output."""

    name: str
    directory: Path
    is_checkpoint: bool


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a part, as clauses; `checked` False where it came without digests."""

    problems: tuple[str, ...]
    checked: bool = True

    def in_words(self) -> str:
        if self.problems:
            return f"DAMAGED: {'; '.join(self.problems)}"
        if not self.checked:
            return "of an early version, without digests: sizes and formats are right"
        return "intact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN|EXPORT|CHECKPOINT")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a verdict on each part of `arguments.path`; returns the exit code."""
    path: Path = arguments.path
    parts = parts_of(path)
    width = max((len(part.name) for part in parts), default=0)
    damaged, resumable = 0, []
    for part, verdict in verdicts(parts, quiet=arguments.quiet):
        print(f"{part.name:<{width}}  {verdict.in_words()}", flush=True)
        damaged += bool(verdict.problems)
        resumable += [part.name] if part.is_checkpoint and not verdict.problems else []
    of_a_run = is_run(path)
    if of_a_run and (problem := config_problem(path)):
        print(f"{CONFIG_NAME:<{width}}  DAMAGED: it {problem}")
        damaged += 1
    if not parts:
        print(f"{path} has no export and no checkpoint yet")
    if damaged:
        advice = "copy it again from where it was written, or use another one"
        if of_a_run:
            advice = _advice(path, resumable)
        print(f"{damaged} damaged; {advice}")
    return EXIT_USER_ERROR if damaged else 0


def _advice(run_dir: Path, resumable: list[str]) -> str:
    """What still works in a run with damage; `resumable` are its intact checkpoints."""
    if not resumable:
        return "no checkpoint is intact: copy the run again from where it was written"
    if not is_finished(run_dir):
        return f"the run would resume from {resumable[0]}"
    step = step_of(Path(resumable[0]))
    named = shlex.quote(str(run_dir))
    return (
        f"the run is done; evaluate an intact checkpoint with: python evaluate.py {named} "
        f"--checkpoint {step}"
    )


def parts_of(path: Path) -> list[Part]:
    """What a path holds: the exports and checkpoints of a run, the newest first, or one of them.

    Raises `UserError` where it is none of these.
    """
    if (path / FACTS_NAME).exists() or (path / DIGESTS_NAME).exists():
        return [Part(str(path), path, is_checkpoint=False)]
    if (path / COMPLETE_NAME).exists() or (path / STATE_NAME).exists():
        return [Part(str(path), path, is_checkpoint=True)]
    if not is_run(path):
        if (path / STATUS_NAME).is_file():  # a start that failed
            return []
        raise UserError(
            f"{path} is not a run directory, an export or a checkpoint; give the run.dir of a "
            "training run, RUN/best, or RUN/checkpoints/step-N"
        )
    best = [path / "best"] if (path / "best").exists() else []
    exports = [*best, *sorted((path / "exports").glob("step-*"), reverse=True)]
    if best and any(best[0].resolve() == export.resolve() for export in exports[1:]):
        exports = exports[1:]  # `best` is a link to one of them
    return [
        *(Part(_name(path, folder), folder, is_checkpoint=False) for folder in exports),
        *(
            Part(_name(path, folder), folder, is_checkpoint=True)
            for folder in checkpoint_directories(path)
        ),
    ]


def is_run(path: Path) -> bool:
    """Whether a directory looks like that of a run, however damaged."""
    of_part = (FACTS_NAME, DIGESTS_NAME, COMPLETE_NAME, STATE_NAME)
    if any((path / name).exists() for name in of_part):
        return False
    return any((path / name).exists() for name in (CONFIG_NAME, "checkpoints", "exports"))


def verdicts(parts: list[Part], *, quiet: bool) -> Iterator[tuple[Part, Verdict]]:
    """Read all files of each part; one that a run removes meanwhile is left out."""
    sizes = [_size(part.directory) for part in parts]
    lock, rest = threading.Lock(), 0
    with Progress(total=sum(sizes) // _MIB + 1, what="verified", quiet=quiet, unit="MiB") as shown:

        def advance(num_bytes: int) -> None:
            nonlocal rest
            with lock:
                rest += num_bytes
                if rest >= _MIB:
                    shown.advance(rest // _MIB)
                    rest %= _MIB

        for part in parts:
            verdict = (_of_checkpoint if part.is_checkpoint else _of_export)(
                part.directory, advance
            )
            if part.directory.exists():
                yield part, verdict


def _size(directory: Path) -> int:
    """Bytes of its files; 0 for a directory that a live run is removing."""
    try:
        return sum((directory / name).stat().st_size for name in files_below(directory))
    except FileNotFoundError:
        return 0


def _of_checkpoint(directory: Path, advance: Advance) -> Verdict:
    problems = damage_of(directory, advance)
    if problems:
        return Verdict(tuple(problems))
    # Its files have just been read; a calibration may have been added since it was written.
    export = damage_of_export(directory / CHECKPOINT_EXPORT_NAME, content=False)
    return Verdict(tuple(export), has_digests(read_listing(directory / COMPLETE_NAME)))


def _of_export(directory: Path, advance: Advance) -> Verdict:
    problems = damage_of_export(directory, advance)
    return Verdict(tuple(problems), checked=(directory / DIGESTS_NAME).exists())


def _name(run_dir: Path, folder: Path) -> str:
    return folder.relative_to(run_dir).as_posix()
