"""`RUN/config.yaml`: what a run was started with; each checkpoint has a copy of it, `run.yaml`.

The copy is covered by the checkpoint's digests. Where both differ, or the file is empty, cut or
missing, the checkpoint is right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmsa.checkpoint_folders import whole_checkpoints
from mmsa.config import Config, load_config
from mmsa.errors import UserError
from mmsa.export import CONFIG_NAME
from mmsa.foundation.atomic_write import flush, write_file
from mmsa.training.checkpoints.intact import COPY_NAME, Choice
from mmsa.training.checkpoints.resume import (
    check_run_dir,
    check_same_run,
    copy_in,
    differences,
)

logger = logging.getLogger("mmsa")

DAMAGED_NAME = "config.yaml.damaged"


@dataclass(frozen=True)
class EarlierConfig:
    """`config.yaml` as it was found: a configuration, or why there is none (a clause)."""

    config: Config | None
    problem: str = ""
    is_empty: bool = False

    def required(self, run_dir: Path) -> Config:
        """The configuration; `UserError` where the file holds none."""
        if self.config is None:
            raise UserError(
                f"{run_dir / CONFIG_NAME} {self.problem}, and there is no checkpoint to restore it "
                "from; choose another run.dir, or remove this one"
            )
        return self.config


def earlier_config(run_dir: Path) -> EarlierConfig | None:
    """What `config.yaml` of a run directory holds; None if there is no such file."""
    path = run_dir / CONFIG_NAME
    if not path.exists():
        return None
    try:
        if not path.read_bytes().strip(b"\0 \t\r\n"):
            return EarlierConfig(None, "is empty", is_empty=True)
        return EarlierConfig(load_config(str(path)))
    except OSError as error:
        return EarlierConfig(None, f"cannot be read ({error.strerror})")
    except (UserError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return EarlierConfig(None, f"cannot be used ({lines[0]})")


def resumes(
    choice: Choice,
    config: Config,
    *,
    precision: Callable[[], str],
    shards_digest: Callable[[], str | None],
) -> bool:
    """Whether the directory of `choice` holds a run that `config` continues; False: a new one.

    `precision` and `shards_digest` give what `resume.check_same_run` compares. `config.yaml` is not
    needed where there is a checkpoint. Raises `UserError` if the directory holds another run, or
    other files.
    """
    run_dir = choice.run_dir
    earlier = earlier_config(run_dir)
    if choice.any_exists:
        found = None if earlier is None else earlier.config
    elif earlier is None or earlier.is_empty:
        check_run_dir(run_dir, may_hold=() if earlier is None else (CONFIG_NAME,))
        return False
    else:
        found = earlier.required(run_dir)
    check_same_run(
        run_dir,
        found,
        config,
        checkpoint=choice.checkpoint,
        precision=precision(),
        shards_digest=shards_digest(),
    )
    return True


def settle_config(run_dir: Path, checkpoint: Path | None, config: Config) -> str:
    """Write `config.yaml` of a new run, or restore that of a resumed one; returns its content.

    `config` is the launch's, found to continue the run of `checkpoint`. An intact file stays as it
    is. One of another content that is replaced is kept as `config.yaml.damaged`. Main rank.
    """
    path = run_dir / CONFIG_NAME
    found = _text_of(path)
    copy = None if checkpoint is None else _text_of(checkpoint / COPY_NAME)
    problem = "is missing" if found is None else _problem(run_dir, found, copy, config)
    if found is not None and not problem:
        return copy or found
    content = config.to_yaml() if copy is None else copy
    if checkpoint is not None:
        source = "this launch" if copy is None else checkpoint.name
        logger.warning("%s %s; restored from %s", path, problem, source)
    if found and found.strip("\0 \t\r\n") and not content.startswith(found):
        write_file(path.with_name(DAMAGED_NAME), found)
    write_file(path, content)
    flush(run_dir)  # the name
    return content


def _problem(run_dir: Path, found: str, copy: str | None, config: Config) -> str:
    """What is wrong with the content of `config.yaml`, as a clause; empty if nothing is."""
    earlier = earlier_config(run_dir)
    if earlier is None or earlier.config is None:
        return "is missing" if earlier is None else earlier.problem
    if copy is not None and found != copy and copy.startswith(found):
        return "is cut"
    changed = differences(earlier.config, config)
    return f"was changed ({'; '.join(changed)})" if changed else ""


def config_problem(run_dir: Path) -> str:
    """What is wrong with `config.yaml` of a run by its newest checkpoint, as a clause; or empty."""
    found = _text_of(run_dir / CONFIG_NAME)
    if found is None:
        return "is missing"
    for checkpoint in whole_checkpoints(run_dir):
        try:
            config = copy_in(checkpoint)
        except UserError:
            continue  # damaged itself
        if config is not None:
            return _problem(run_dir, found, _text_of(checkpoint / COPY_NAME), config)
    earlier = earlier_config(run_dir)
    return "" if earlier is None else earlier.problem


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
