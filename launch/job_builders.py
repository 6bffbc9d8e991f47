"""The jobs that can be submitted: what each checks, writes and hands to SLURM."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch import checks, job_log, slurm_queue
from launch.script import fill_in
from launch.site import Site
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports

ConfigFiles = dict[Path, str]


@dataclass(frozen=True)
class Job:
    """A script to be written to `folder` and submitted; `files` are written beside it before."""

    kind: str
    folder: Path
    script: str
    log: str  # with sbatch's patterns
    about: str  # in words
    files: ConfigFiles = field(default_factory=dict)
    note_in: tuple[Path, ...] = ()  # of an array of runs: the folder of each task's run

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}.sbatch"


def make_job(
    kind: str,
    site: Site,
    folder: Path,
    words: Sequence[str],
    *,
    about: str,
    array: str | None = None,
    files: ConfigFiles | None = None,
    settings: dict[str, str] | None = None,
) -> Job:
    """A job of `launch/slurm/KIND.sbatch`, filled in."""
    log = str(folder / f"{kind}-{'%A_%a' if array else '%j'}.log")
    options = {"output": log} | ({"array": array} if array else {})
    script = fill_in(kind, site, words, options=options, settings=settings)
    return Job(kind, folder, script, log, about, files or {})


def hand_over(jobs: Sequence[Job], *, dry_run: bool, notes: Sequence[str] = ()) -> list[str]:
    """Write and submit `jobs`, each after the one before it was done; returns their numbers.

    With `dry_run` they are shown instead.
    """
    for note in notes:
        print(note)
    if dry_run:
        for job in jobs:
            for path, text in {**job.files, job.path: job.script}.items():
                print(f"\n==> {path}\n{text}", end="")
        print("\nnothing was submitted (--dry-run)")
        return []
    numbers: list[str] = []
    for job in jobs:
        for path, text in {**job.files, job.path: job.script}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        after = []
        if numbers:
            # Without the second a job whose forerunner failed would wait for ever.
            after = [f"--dependency=afterok:{numbers[-1]}", "--kill-on-invalid-dep=yes"]
        try:
            number = slurm_queue.submit(job.path, *after)
        except UserError as error:
            if not numbers:
                raise
            slurm_queue.cancel(numbers)  # all of a chain, or nothing
            raise UserError(f"{error}. Job {', '.join(numbers)} was cancelled again") from None
        numbers.append(number)
        log = job.log.replace("%j", number).replace("%A", number)
        job_log.note_job(job.folder, number, kind=job.kind, log=log)
        for task, folder in enumerate(job.note_in, start=1):
            own_log = log.replace("%a", str(task))
            job_log.note_job(folder, f"{number}_{task}", kind="train", log=own_log)
        behind = f", after job {numbers[-2]}" if after else ""
        print(f"submitted job {number}: {job.about}{behind}")
        print(f"  log     {log.replace('%a', 'TASK')}")
    first = jobs[0]
    for folder in [first.folder] if first.kind == "train" else first.note_in[:1]:
        print(f"  follow  python -m launch status {folder.parent}")
    print(f"  follow  squeue --jobs {','.join(numbers)}")
    print(f"  cancel  scancel {' '.join(numbers)}")
    return numbers


def submit_train(site: Site, arguments: argparse.Namespace) -> None:
    notes = checks.check_slurm("train", site, dry_run=arguments.dry_run)
    imports, (file, *overrides) = take_imports(arguments.rest)
    config = checks.load_for_shape(file, overrides, site)
    notes += checks.check_run(config)
    notes += checks.note_missing_weights(config, arguments.rest, site)
    run_dir = Path(str(config.run.dir))
    folder = job_log.folder_of(run_dir)
    site = replace_engine(site, config.launch.engine)
    shape = checks.shape_in_words(site)
    resolved = folder / "train.yaml"
    jobs = [
        make_job(
            "train",
            site,
            folder,
            ["--config", str(resolved), *as_options(imports)],
            about=f"train {run_dir} on {shape}, {config.launch.engine}",
            files={resolved: config.to_yaml()},
        )
    ]
    if arguments.chain:
        words = [str(run_dir), "--split", arguments.split, *as_options(imports)]
        about = f"evaluate {run_dir} on {arguments.split}"
        jobs.append(make_job("evaluate", site, folder, words, about=about))
    hand_over(jobs, dry_run=arguments.dry_run, notes=notes)


def replace_engine(site: Site, engine: str) -> Site:
    return site.model_copy(update={"engine": engine})


def submit_evaluate(site: Site, arguments: argparse.Namespace) -> None:
    from evaluate import build_parser, check_arguments
    from mmsa.evaluation.report.read_report import is_report
    from mmsa.export import read_export, resolve_export

    notes = checks.check_slurm("evaluate", site, dry_run=arguments.dry_run)
    asked = build_parser().parse_intermixed_args(arguments.rest)
    check_arguments(asked)
    models = [path for path in asked.targets if not is_report(path)]
    if not models:
        raise UserError("reports alone need no job; run evaluate.py here")
    targets = [resolve_export(path, asked.checkpoint) for path in models]
    for target in targets:
        read_export(target.directory)
    job = make_job(
        "evaluate",
        site,
        job_log.folder_of(targets[0].home),
        arguments.rest,
        about=f"evaluate {' '.join(str(target.directory) for target in targets)} on "
        f"{asked.split}, {checks.shape_in_words(site)}",
    )
    hand_over([job], dry_run=arguments.dry_run, notes=notes)


def submit_pack(site: Site, arguments: argparse.Namespace) -> None:
    from shards.packing.merge import part_path
    from shards.sources import get_source

    notes = checks.check_slurm("pack", site, dry_run=arguments.dry_run)
    if len(arguments.rest) < 3 or any(word.startswith("-") for word in arguments.rest[:3]):
        raise UserError(
            f"submit pack: expected SOURCE RAW OUT [options of shards pack] behind --, found: "
            f"{' '.join(arguments.rest)}"
        )
    source, raw, out = arguments.rest[0], Path(arguments.rest[1]), Path(arguments.rest[2])
    parts = arguments.parts or 1
    if parts < 1:
        raise UserError(f"--parts {parts} must be at least 1")
    get_source(source)
    if not raw.exists():
        raise UserError(f"the raw data {raw} is not there; give an existing RAW")
    in_the_way = [out, *(part_path(out, part, parts) for part in range(1, parts + 1))]
    there = [str(path) for path in in_the_way if path.exists()]
    if there:
        raise UserError(f"{', '.join(there)} is there already; remove it, or give another OUT")
    folder = out.with_name(f"{out.name}.slurm")
    array = f"1-{parts}" + (f"%{arguments.at_once}" if arguments.at_once else "")
    about = f"pack {raw} in {parts} part(s)"
    jobs = [
        make_job("pack", site, folder, arguments.rest, about=about, array=array),
        make_job("merge", site, folder, [str(out)], about=f"join them as {out}"),
    ]
    hand_over(jobs, dry_run=arguments.dry_run, notes=notes)


def submit_seeds(site: Site, arguments: argparse.Namespace) -> None:
    notes = checks.check_slurm("seeds", site, dry_run=arguments.dry_run)
    base, engine = Path(), "ddp"
    files: ConfigFiles = {}
    imports, rest = take_imports(arguments.rest)
    for name, file, overrides in _tasks(arguments, rest):
        config = checks.load_for_shape(file, overrides, site)
        base, engine = Path(str(config.run.dir)), config.launch.engine
        run = config.run.model_copy(update={"dir": str(base / name)})
        config = config.model_copy(update={"run": run})
        notes += checks.check_run(config)
        notes += (
            []
            if files
            else checks.note_missing_weights(config, [file, *overrides, *as_options(imports)], site)
        )
        files[job_log.folder_of(base / name) / "train.yaml"] = config.to_yaml()
    folder = job_log.folder_of(base)
    listed = folder / job_log.LISTED
    at_once = f"%{arguments.at_once}" if arguments.at_once else ""
    job = make_job(
        "seeds",
        replace_engine(site, engine),
        folder,
        as_options(imports),
        about=f"train {len(files)} runs below {base}, each on {checks.shape_in_words(site)}",
        array=f"1-{len(files)}{at_once}",
        files={**files, listed: "".join(f"{path}\n" for path in files)},
        settings={"CONFIGURATIONS": str(listed)},
    )
    tasks = tuple(path.parent for path in files)
    job = replace(job, note_in=tasks)
    hand_over([job], dry_run=arguments.dry_run, notes=list(dict.fromkeys(notes)))


def _tasks(arguments: argparse.Namespace, rest: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """(name of the run, configuration, overrides) of each task of the array."""
    if bool(arguments.seeds) == bool(arguments.configs):
        raise UserError("submit seeds: give one of --seeds 0-4 and --configs FILE ...")
    if arguments.seeds:
        file, *overrides = rest
        return [
            (f"seed-{seed}", file, [*overrides, f"run.seed={seed}"])
            for seed in parse_seeds(arguments.seeds)
        ]
    names = [Path(file).stem for file in arguments.configs]
    if len(set(names)) < len(names):
        raise UserError(
            f"--configs {' '.join(arguments.configs)}: a run is named by its file, and two have "
            "the same name; rename one"
        )
    overrides = list(rest)
    return [(name, file, overrides) for name, file in zip(names, arguments.configs, strict=True)]


def parse_seeds(text: str) -> list[int]:
    """The numbers of "0-4" or "1,7,9"; `UserError` for anything else."""
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise UserError(f"--seeds {text}: expected numbers, as in 0-4 or 1,7,9")
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds {text}: expected at least one number, each once")
    return seeds


SUBMITTERS: dict[str, Callable[[Site, argparse.Namespace], None]] = {
    "train": submit_train,
    "evaluate": submit_evaluate,
    "pack": submit_pack,
    "seeds": submit_seeds,
}
