"""`python -m launch study STUDY.yaml`: train all variants of a question, and answer it.

    study launch/studies/heads.yaml --out runs/heads --parallel 2 -- data.shards=data/posts
    study launch/studies/heads.yaml --out runs/heads --status
    study launch/studies/heads.yaml --out runs/heads --final

STUDY.yaml has variants (named lists of settings), seeds and perhaps folds; settings after -- are of
all runs. The same command again goes on: finished runs stay, interrupted ones resume, and several
commands, also on several machines, share the work. The answer, by validation alone, is in
OUT/study.json, OUT/study.html and OUT/best.yaml. --final opens the test split once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.errors import EXIT_PREEMPTED, UserError
from mmsa.foundation.atomic_write import write_file, write_files
from mmsa.foundation.settings_yaml import dump_settings

if TYPE_CHECKING:  # slow to import, and --help answers at once
    from launch.study.question import Study
    from launch.study.trials import Trial

_ENGINES = ("ddp", "zero1", "zero2", "zero3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the question")
    parser.add_argument(
        "--out", type=Path, help="directory of the study (default: runs/ and the file's name)"
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, which share the cores (default: %(default)s)",
    )
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes of each run, one for each GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", choices=_ENGINES, default="ddp", help="of each run (default: %(default)s)"
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="train only these variants, separated by commas"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all variants, show the commands of the runs"
    )
    parser.add_argument("--status", action="store_true", help="show the state, train nothing")
    parser.add_argument(
        "--final",
        nargs="*",
        metavar="VARIANT",
        help="open test once, for the best by validation, the baseline and the named variants",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.study.question import load_study
    from launch.study.table import print_study
    from launch.study.trials import trials_of

    for name in ("parallel", "processes"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected 1 or more")
    study = load_study(arguments.study, arguments.rest)
    out = arguments.out or Path("runs") / arguments.study.stem
    if arguments.status and not out.is_dir():
        raise UserError(f"{out} does not exist: the study has not begun; leave out --status")
    trials = trials_of(study, out)
    _check_same(study, trials)
    if not arguments.status and arguments.final is None:
        _check_settings(study, trials)
        if arguments.dry_run:
            print("\n".join(one for each in _commands(study, trials, out).values() for one in each))
            print("nothing was started (--dry-run)")
            return 0
        stopped = _train(study, trials, arguments, out)
        if stopped is not None:
            return EXIT_PREEMPTED
    found = _answered(study, trials, out, arguments.final)
    print_study(study, trials, found)
    if not arguments.status:
        print(f"the answer: {out / 'study.html'}")
    failed = [t for t in trials if t.state(study.digest_of(t.variant)) == "failed"]
    return 1 if failed and not arguments.status else 0


def _check_same(study: Study, trials: Sequence[Trial]) -> None:
    """Raise `UserError` where a run has been trained with other settings than the file has now."""
    changed = [
        trial
        for trial in trials
        if trial.is_scored("val") and trial.was_trained_otherwise(study.digest_of(trial.variant))
    ]
    if changed:
        names = ", ".join(dict.fromkeys(trial.variant for trial in changed))
        raise UserError(
            f"the settings of {names} have changed since {changed[0].run_dir} was trained. Give "
            "the changed variant another name, choose another --out, or remove the runs and logs "
            "of the old one"
        )


def _check_settings(study: Study, trials: Sequence[Trial]) -> None:
    """Raise `UserError` with the problems of each variant's configuration, before any training."""
    from mmsa.config import load_config
    from mmsa.training.setup import training_checks

    problems: dict[str, list[str]] = {}
    for variant in study.variants:
        trial = next(trial for trial in trials if trial.variant == variant)
        try:
            base = str(_base_file(study, trial.out))
            load_config(base, trial.overrides(study), checks=training_checks())
        except UserError as error:
            problems.setdefault(str(error), []).append(variant)
    if problems:
        listed = "; ".join(f"{', '.join(names)}: {what}" for what, names in problems.items())
        raise UserError(f"the study cannot be trained. {listed}")


def _base_file(study: Study, out: Path) -> Path:
    """The base configuration as a file; one that stands in STUDY.yaml is written to OUT."""
    if isinstance(study.base, str):
        return Path(study.base)
    path, content = out / "base.yaml", dump_settings(study.base)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_file(path, content)
    return path


def _train(
    study: Study, trials: Sequence[Trial], arguments: argparse.Namespace, out: Path
) -> int | None:
    from launch.study.running import Driver

    only = None if arguments.only is None else set(arguments.only.split(","))
    unknown = sorted((only or set()) - set(study.variants))
    if unknown:
        raise UserError(
            f"--only {','.join(unknown)}: no such variant; the study has "
            f"{', '.join(study.variants)}"
        )
    todo = [t for t in trials if (only is None or t.variant in only) and not t.is_scored("val")]
    driver = Driver(
        study,
        _base_file(study, out),
        todo,
        parallel=arguments.parallel,
        processes=arguments.processes,
        engine=arguments.engine,
    )
    return driver.work()


def _answered(
    study: Study, trials: Sequence[Trial], out: Path, final: Sequence[str] | None
) -> dict[str, Any]:
    """The answer, written to OUT."""
    from launch.study.answer import answer
    from launch.study.final import open_test, read_final
    from launch.study.page import render

    found = answer(study, trials)
    opened = read_final(out) if final is None else open_test(study, trials, found, out, final)
    commands = _commands(study, trials, out)
    files: dict[str, bytes] = {
        "study.json": (json.dumps(found | {"commands": commands}, indent=1) + "\n").encode(),
        "study.html": render(found, opened, commands, out.name),
    }
    if found["best"] is not None:
        files["best.yaml"] = _best_configuration(study, trials, found["best"])
    try:
        write_files(out, files)
    except OSError as error:
        print(f"the answer cannot be written to {out} ({error.strerror})", file=sys.stderr)
    return found


def _commands(study: Study, trials: Sequence[Trial], out: Path) -> dict[str, list[str]]:
    """Variant -> the command that repeats each of its runs, in one process."""
    base = str(_base_file(study, out))
    commands: dict[str, list[str]] = {}
    for trial in trials:
        words = ["python", "train.py", "--config", base, *trial.overrides(study)]
        commands.setdefault(trial.variant, []).append(shlex.join(words))
    return commands


def _best_configuration(study: Study, trials: Sequence[Trial], best: str) -> bytes:
    """The winner's configuration for `train.py --config`, without its run directory and shards."""
    from mmsa.config import load_config

    trial = next(trial for trial in trials if trial.variant == best)
    config = load_config(str(_base_file(study, trial.out)), trial.overrides(study))
    content = config.content()
    content["run"].pop("dir")
    if study.folds is not None:
        content["data"].pop("shards")
    return dump_settings(content).encode("utf-8")
