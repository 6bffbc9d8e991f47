"""The jobs that can be submitted: what each kind checks, writes and submits."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from launch import checks, job_log, slurm_queue
from launch.dry_run import ConfigFiles, as_shown
from launch.script import fill_in, log_path, log_pattern
from launch.site import Site
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports


@dataclass(frozen=True)
class Job:
    """A script to write to `folder` and submit; `files` are written first."""

    kind: str
    folder: Path
    script: str
    log: str  # a pattern of script.log_pattern
    description: str
    files: ConfigFiles = field(default_factory=dict)
    task_folders: tuple[Path, ...] = ()  # for an array of runs: the folder of each task's run

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}.sbatch"


def make_job(
    kind: str,
    site: Site,
    folder: Path,
    script_arguments: Sequence[str],
    *,
    description: str,
    array: str | None = None,
    files: ConfigFiles | None = None,
    settings: dict[str, str] | None = None,
) -> Job:
    """A job from `launch/slurm/KIND.sbatch`, filled in."""
    log = log_pattern(folder, f"{kind}-{'%A_%a' if array else '%j'}.log")
    options = {"output": log} | ({"array": array} if array else {})
    script = fill_in(kind, site, script_arguments, options=options, settings=settings)
    return Job(kind, folder, script, log, description, files or {})


def submit_jobs(jobs: Sequence[Job], *, dry_run: bool, notes: Sequence[str] = ()) -> list[str]:
    """Write and submit `jobs`, each depending on the one before; returns their numbers.

    With `dry_run` they are only printed.
    """
    for note in notes:
        print(note)
    if dry_run:
        for job in jobs:
            for path, text in as_shown({**job.files, job.path: job.script}).items():
                print(f"\n==> {path}\n{text}", end="")
        print("\nnothing was submitted (--dry-run)")
        return []
    numbers: list[str] = []
    for job in jobs:
        for path, text in {**job.files, job.path: job.script}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        dependency = []
        if numbers:
            # Without the second option, a job whose predecessor failed would wait forever.
            dependency = [f"--dependency=afterok:{numbers[-1]}", "--kill-on-invalid-dep=yes"]
        try:
            number = slurm_queue.submit(job.path, *dependency)
        except UserError as error:
            if not numbers:
                raise
            slurm_queue.cancel(numbers)  # a whole chain or nothing
            raise UserError(f"{error}. Job {', '.join(numbers)} was cancelled") from None
        numbers.append(number)
        log = partial(log_path, job.log, j=number, A=number)
        job_log.record_job(job.folder, number, kind=job.kind, log=log())
        for task, folder in enumerate(job.task_folders, start=1):
            task_log = log(a=str(task))
            job_log.record_job(folder, f"{number}_{task}", kind="train", log=task_log)
        after = f", after job {numbers[-2]}" if dependency else ""
        print(f"submitted job {number}: {job.description}{after}")
        print(f"  log     {log(a='TASK')}")
    first = jobs[0]
    trained = any(job.kind == "train" for job in jobs)
    for folder in [first.folder] if trained else first.task_folders[:1]:
        print(f"  follow  python -m launch status {shlex.quote(str(folder.parent))}")
    print(f"  follow  squeue --jobs {','.join(numbers)}")
    print(f"  cancel  scancel {' '.join(numbers)}")
    return numbers


def submit_train(site: Site, arguments: argparse.Namespace) -> None:
    notes = checks.check_slurm("train", site, dry_run=arguments.dry_run)
    imports, (file, *overrides) = take_imports(arguments.rest)
    config = checks.load_for_shape(file, overrides, site)
    notes += checks.check_run(config, dry_run=arguments.dry_run)
    notes += checks.note_missing_weights(config, arguments.rest, site)
    run_dir = Path(str(config.run.dir))
    folder = job_log.slurm_dir(run_dir)
    site = replace_engine(site, config.launch.engine)
    shape = checks.shape_in_words(site)
    resolved = folder / "train.yaml"
    training = make_job(
        "train",
        site,
        folder,
        ["--config", str(resolved), *as_options(imports)],
        description=f"train {run_dir} on {shape}, {config.launch.engine}",
        files={resolved: config.to_yaml()},
    )
    jobs = [training]
    if arguments.check:
        jobs.insert(0, _doctor_job(site, training, resolved, arguments, imports))
    if arguments.chain:
        words = [str(run_dir), "--split", arguments.split, *as_options(imports)]
        description = f"evaluate {run_dir} on {arguments.split}"
        jobs.append(make_job("evaluate", site, folder, words, description=description))
    submit_jobs(jobs, dry_run=arguments.dry_run, notes=notes)


def _doctor_job(
    site: Site, training: Job, config: Path, arguments: argparse.Namespace, imports: Sequence[str]
) -> Job:
    """Examines nodes of the same shape as those of `training`, and writes its configuration."""
    file = ["--site", str(arguments.site.absolute())] if arguments.site else []
    return make_job(
        "doctor",
        site.model_copy(update={"time": None}),  # it takes minutes, whatever the training takes
        training.folder,
        [*file, "--", str(config), *as_options(imports)],
        description=f"examine {checks.shape_in_words(site)} (python -m launch doctor)",
        files=training.files,
    )


def replace_engine(site: Site, engine: str) -> Site:
    return site.model_copy(update={"engine": engine})


def submit_evaluate(site: Site, arguments: argparse.Namespace) -> None:
    from mmsa.evaluation.arguments import build_parser, check_arguments
    from mmsa.evaluation.report.read_report import is_report
    from mmsa.export import read_export
    from mmsa.export_target import read_export_whole

    notes = checks.check_slurm("evaluate", site, dry_run=arguments.dry_run)
    options = build_parser().parse_intermixed_args(arguments.rest)
    check_arguments(options)
    paths = [path for path in options.targets if not is_report(path)]
    if not paths:
        raise UserError("finished reports need no job; run evaluate.py here")
    targets = [
        read_export_whole(path, options.checkpoint, lambda found: read_export(found.directory))[0]
        for path in paths
    ]
    job = make_job(
        "evaluate",
        site,
        job_log.slurm_dir(targets[0].home),
        arguments.rest,
        description=f"evaluate {' '.join(str(target.directory) for target in targets)} on "
        f"{options.split}, {checks.shape_in_words(site)}",
    )
    submit_jobs([job], dry_run=arguments.dry_run, notes=notes)


def submit_pack(site: Site, arguments: argparse.Namespace) -> None:
    from shards.packing.merge import part_path
    from shards.sources import get_source

    notes = checks.check_slurm("pack", site, dry_run=arguments.dry_run)
    imports, words = take_imports(arguments.rest)
    if len(words) < 3 or any(word.startswith("-") for word in words[:3]):
        raise UserError(
            f"submit pack: expected SOURCE RAW OUT [options of shards pack] after --, found: "
            f"{' '.join(words)}"
        )
    source, raw, out = words[0], Path(words[1]), Path(words[2])
    parts = arguments.parts or 1
    if parts < 1:
        raise UserError(f"--parts {parts} must be at least 1")
    get_source(source)
    if not raw.exists():
        raise UserError(f"the raw data {raw} does not exist; give an existing RAW")
    outputs = [out, *(part_path(out, part, parts) for part in range(1, parts + 1))]
    existing = [str(path) for path in outputs if path.exists()]
    if existing:
        raise UserError(f"{', '.join(existing)} already exists; remove it or choose another OUT")
    folder = out.with_name(f"{out.name}.slurm")
    array = f"1-{parts}" + (f"%{arguments.at_once}" if arguments.at_once else "")
    description = f"pack {raw} in {parts} part(s)"
    jobs = [
        make_job(
            "pack",
            site,
            folder,
            [*words, *as_options(imports)],
            description=description,
            array=array,
        ),
        make_job("merge", site, folder, [str(out)], description=f"join the parts as {out}"),
    ]
    submit_jobs(jobs, dry_run=arguments.dry_run, notes=notes)


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
        notes += checks.check_run(config, dry_run=arguments.dry_run)
        if not files:
            words = [file, *overrides, *as_options(imports)]
            notes += checks.note_missing_weights(config, words, site)
        files[job_log.slurm_dir(base / name) / "train.yaml"] = config.to_yaml()
    folder = job_log.slurm_dir(base)
    list_file = folder / job_log.CONFIGURATIONS_NAME
    at_once = f"%{arguments.at_once}" if arguments.at_once else ""
    job = make_job(
        "seeds",
        replace_engine(site, engine),
        folder,
        as_options(imports),
        description=f"train {len(files)} runs in {base}, each on {checks.shape_in_words(site)}",
        array=f"1-{len(files)}{at_once}",
        files={**files, list_file: "".join(f"{path}\n" for path in files)},
        settings={"CONFIGURATIONS": str(list_file)},
    )
    job = replace(job, task_folders=tuple(path.parent for path in files))
    submit_jobs([job], dry_run=arguments.dry_run, notes=list(dict.fromkeys(notes)))


def _tasks(arguments: argparse.Namespace, rest: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """(name of the run, configuration, overrides) of each task of the array."""
    if bool(arguments.seeds) == bool(arguments.configs):
        raise UserError("submit seeds: give either --seeds 0-4 or --configs FILE ...")
    if arguments.seeds:
        file, *overrides = rest
        return [
            (f"seed-{seed}", file, [*overrides, f"run.seed={seed}"])
            for seed in parse_seeds(arguments.seeds)
        ]
    names = [Path(file).stem for file in arguments.configs]
    for name in names:
        if len(name.splitlines()) != 1 or "\0" in name:
            raise UserError(
                f"--configs {name!r}: runs are named after their files, and the list of an array "
                "has one run on a line; rename this file"
            )
    if len(set(names)) < len(names):
        raise UserError(
            f"--configs {' '.join(arguments.configs)}: runs are named after their files, and two "
            "have the same name; rename one"
        )
    overrides = list(rest)
    return [(name, file, overrides) for name, file in zip(names, arguments.configs, strict=True)]


def parse_seeds(text: str) -> list[int]:
    """Parse "0-4" or "1,7,9"; `UserError` for anything else."""
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise UserError(f"--seeds {text}: expected numbers, such as 0-4 or 1,7,9")
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
