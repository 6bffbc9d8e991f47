"""`python -m launch study STUDY.yaml`: train all variants of a question, and answer it.

    study launch/studies/learning_rates.yaml --parallel 2 -- \\
        data.shards=data/posts
    study launch/studies/learning_rates.yaml --slurm \\
        --parallel 8 --gpus-per-node 4 -- ...
    study launch/studies/learning_rates.yaml --status
    study launch/studies/learning_rates.yaml --final
    study launch/studies/best.yaml --raw RAW --out runs/best

STUDY.yaml has variants (named lists of settings), seeds and perhaps folds, or a search over ranges
of settings; settings after -- are of all runs. The same command again goes on: finished runs stay,
interrupted ones resume, and several commands, also on several machines, share the work. The
answer, by validation alone, is in OUT/study.json, OUT/study.html and OUT/best.yaml. --final opens
the test split once.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.submit import add_job_options
from mmsa.errors import EXIT_PREEMPTED, UserError
from mmsa.extensions import add_import_option, as_options, import_extensions, take_imports

if TYPE_CHECKING:  # slow to import, and --help answers at once
    from launch.study.given_settings import Given
    from launch.study.question import Study
    from launch.study.trials import Trial

_ENGINES = ("ddp", "zero1", "zero2", "zero3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the question")
    parser.add_argument(
        "--out", type=Path, help="directory of the study (default: runs/ and the file's name)"
    )
    parser.add_argument("--raw", metavar="DIR", help="the raw data of its folds (folds.raw)")
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, which share the cores; under --slurm tasks (default: %(default)s)",
    )
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes of each run, one for each GPU (default: %(default)s)",
    )
    parser.add_argument("--engine", choices=_ENGINES, help="of each run (default: ddp)")
    parser.add_argument(
        "--slurm",
        action="store_true",
        help="submit an array of --parallel tasks, which train the runs",
    )
    add_job_options(parser)
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
    add_import_option(parser, dest="modules")
    parser.set_defaults(run=_run, passes_on="settings")


def _run(arguments: argparse.Namespace) -> int:
    from launch.study.given_settings import Given, remember, remembered
    from launch.study.outcome import base_file
    from launch.study.question import load_study
    from launch.study.searching import check_search
    from launch.study.trials import trials_of

    for name in ("parallel", "processes"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected 1 or more")
    packs = not arguments.status and arguments.final is None
    out = arguments.out or Path("runs") / arguments.study.stem
    later, settings = take_imports(arguments.rest)
    import_extensions(arguments.modules)
    given = Given(settings, [*arguments.imports, *arguments.modules, *later])
    if not packs:
        imports, given = given.imports, given.completed_by(remembered(out))
        if arguments.final is not None and given.imports != imports:  # a file must not run code
            raise UserError(
                f"the study was trained with {shlex.join(as_options(given.imports))}; add it to "
                "the command, because its models are evaluated with it"
            )
    study = load_study(
        arguments.study, given.settings, arguments.raw, packs=packs, imports=given.imports
    )
    if (out / "config.yaml").exists():
        raise UserError(f"{out} is the directory of a run; choose another --out for the study")
    if packs and study.folds is not None and not Path(study.folds.raw).exists():
        raise UserError(
            f"the raw data {study.folds.raw} does not exist; expected what `python -m shards pack "
            f"{study.folds.source}` reads, by --raw or folds.raw"
        )
    if arguments.status and not out.is_dir():
        raise UserError(f"{out} does not exist: the study has not begun; leave out --status")
    if arguments.final is not None:
        _check_final(study, out)
    changes = not (arguments.status or arguments.dry_run)
    _check_same(study, trials_of(study, out), given, out)
    if study.search is not None:
        _check_same_search(study, out, write=changes)
    if not arguments.status and arguments.final is None:
        _check_settings(study, trials_of(study, out))
        if study.search is not None:
            check_search(study, str(base_file(study, out)))
        if changes:
            remember(out, given)
        if arguments.slurm:
            from launch.study.slurm import submit_study

            submit_study(study, arguments, out)
            return 0
        if arguments.dry_run:
            _show(study, out)
            return 0
        if _train_all(study, arguments, out) is not None:
            return EXIT_PREEMPTED
    return _tell(_with_best_trials(study, out), arguments, out)


def _tell(study: Study, arguments: argparse.Namespace, out: Path) -> int:
    """Write and print the answer; the exit code."""
    from launch.study.outcome import answered
    from launch.study.table import print_study
    from launch.study.trials import trials_of

    trials = trials_of(study, out)
    found = answered(study, trials, out, arguments.final)
    print_study(study, trials, found)
    if arguments.status:
        return 0
    print(f"the answer: {out / 'study.html'}")
    failed = any(t.state(study.digest_of(t.variant)) == "failed" for t in trials)
    if study.search is not None:
        searched = found["search"]
        has_ended = searched["num_finished"] >= searched["num_trials"]
        failed = failed or (has_ended and searched["best"] is None)
    return 1 if failed else 0


def _show(study: Study, out: Path) -> None:
    """Print what would be trained."""
    from launch.study.outcome import commands_of
    from launch.study.packing import pack_command
    from launch.study.trials import trials_of

    if study.search is not None:
        search = study.search
        print(f"{search.trials} trials: {search.sampler.name} sampler, {search.pruner.name} pruner")
        for name, parameter in study.search.space.items():
            print(f"  {name}: {parameter.model_dump(by_alias=True, exclude_defaults=True)}")
    if study.folds is not None:
        places = {trial.fold: trial.shards for trial in trials_of(study, out)}
        for number, shards in places.items():
            assert number is not None
            assert shards is not None
            print(shlex.join(["python", *pack_command(study, number, shards)]))
    for commands in commands_of(study, trials_of(study, out), out).values():
        print("\n".join(commands))
    print("nothing was started (--dry-run)")


def _check_final(study: Study, out: Path) -> None:
    """Raise `UserError` where a search has no winner yet that test could be opened for."""
    from launch.study.search.directories import TrialDirectories
    from launch.study.search.summary import is_finished

    if study.search is None:
        return
    if study.search.confirm is None:
        raise UserError(
            "--final: test is opened for trained variants, and this study has a search alone; give "
            "it `confirm`, which trains the best trials again and compares them with the default"
        )
    trials = TrialDirectories(out).all()
    if not is_finished(study.search, trials):
        ended = sum(trial.is_finished for trial in trials)
        raise UserError(
            f"--final: {ended} of {study.search.trials} trials have ended, and the winner is "
            "chosen among all of them; let them end (the same command without --final)"
        )


def _check_same_search(study: Study, out: Path, *, write: bool) -> None:
    from launch.study.search.directories import TrialDirectories
    from launch.study.searching import identity_of

    TrialDirectories(out).check_space(identity_of(study), write=write)


def _with_best_trials(study: Study, out: Path) -> Study:
    """The study whose variants include the best trials, once all have ended."""
    from launch.study.search.directories import TrialDirectories
    from launch.study.search.summary import best_few

    if study.search is None:
        return study
    return study.with_variants(best_few(study.search, TrialDirectories(out).all(), study.metric))


def _check_same(study: Study, trials: Sequence[Trial], given: Given, out: Path) -> None:
    """Raise `UserError` where a run has been trained with other settings than the study has now."""
    from launch.study.given_settings import remembered

    changed = [
        trial
        for trial in trials
        if trial.is_scored("val") and trial.was_trained_otherwise(study.digest_of(trial.variant))
    ]
    if not changed:
        return
    names = ", ".join(dict.fromkeys(trial.variant for trial in changed))
    said = f"the settings of {names} have changed since {changed[0].run_dir} was trained. "
    begun = remembered(out)
    if begun is not None and begun.settings != given.settings:
        before, now = (shlex.join(each.settings) or "no settings" for each in (begun, given))
        raise UserError(
            f"{said}The command line had {before}, and now has {now}. Repeat the command as it "
            "was, or choose another --out for a new study"
        )
    raise UserError(
        f"{said}Give the changed variant another name, choose another --out, or remove the runs "
        "and logs of the old one"
    )


def _check_settings(study: Study, trials: Sequence[Trial]) -> None:
    """Raise `UserError` with the problems of each variant's configuration, before any training."""
    from launch.study.outcome import base_file
    from mmsa.config import load_config
    from mmsa.training.setup import training_checks

    problems: dict[str, list[str]] = {}
    for variant in study.variants:
        trial = next(trial for trial in trials if trial.variant == variant)
        try:
            base = str(base_file(study, trial.out))
            load_config(base, trial.overrides(study), checks=training_checks())
        except UserError as error:
            problems.setdefault(str(error), []).append(variant)
    if problems:
        listed = "; ".join(f"{', '.join(names)}: {what}" for what, names in problems.items())
        raise UserError(f"the study cannot be trained. {listed}")


def _train_all(study: Study, arguments: argparse.Namespace, out: Path) -> int | None:
    """Train the trials of a search, then the runs of all variants; the signal if there was one."""
    from launch.study.outcome import base_file
    from launch.study.running import Driver
    from launch.study.searching import SearchDriver
    from launch.study.trials import trials_of
    from launch.study.workers import Workers

    workers = Workers(
        parallel=arguments.parallel, processes=arguments.processes, engine=arguments.engine or "ddp"
    )
    base = base_file(study, out)
    if study.search is not None:
        stopped = SearchDriver(study, base, out, workers).work()
        if stopped is not None:
            return stopped
        study = _with_best_trials(study, out)
    only = None if arguments.only is None else set(arguments.only.split(","))
    unknown = sorted((only or set()) - set(study.variants))
    if unknown:
        raise UserError(
            f"--only {','.join(unknown)}: no such variant; the study has "
            f"{', '.join(study.variants)}"
        )
    trials = trials_of(study, out)
    todo = [t for t in trials if (only is None or t.variant in only) and not t.is_scored("val")]
    return Driver(study, base, todo, workers).work()
