"""`launch study --slurm`: an array of jobs whose tasks work on one study.

Each task is a driver as on any machine: it takes runs that nobody works on. So tasks may end and
come back, and what one leaves behind another resumes.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from launch import checks, job_log, slurm_queue
from launch.job_builders import make_job, replace_engine, submit_jobs
from launch.site import Site
from launch.study.outcome import base_file
from launch.study.question import Study
from launch.study.trials import trials_of
from launch.submit import check_directory, site_of
from mmsa.config import Config
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports


def submit_study(study: Study, arguments: argparse.Namespace, out: Path) -> None:
    """Submit an array of `--parallel` tasks, unless one for this study is in the queue.

    Raises `UserError` for a job that could not start, or that would need more than one node.
    """
    site = site_of(arguments)
    check_directory()
    if site.nodes not in (None, 1):
        raise UserError(
            f"--nodes {site.nodes}: each task of a study trains on one node; give it --nodes 1 and "
            "--gpus-per-node, and several tasks by --parallel"
        )
    notes = checks.check_slurm("study", site, dry_run=arguments.dry_run)
    folder = job_log.slurm_dir(out)
    queued = slurm_queue.states(job_log.known_jobs(folder))
    if queued and not arguments.dry_run:
        listed = ", ".join(f"{job} ({state})" for job, state in queued.items())
        print(f"nothing was submitted: job {listed} works on this study")
        return
    config = _first_configuration(study, out, site)
    words = [str(base_file(study, out)), *study.settings, *as_options(study.imports)]
    notes += checks.note_missing_weights(config, words, site)
    shape = checks.shape_in_words(site)
    at_once = f"%{arguments.at_once}" if arguments.at_once else ""
    job = make_job(
        "study",
        replace_engine(site, config.launch.engine),
        folder,
        _words_of_tasks(study, arguments, out),
        description=f"{arguments.parallel} task(s) for {out}, each on {shape}",
        array=f"1-{arguments.parallel}{at_once}",
    )
    submit_jobs([job], dry_run=arguments.dry_run, notes=notes)
    if not arguments.dry_run:
        words = ["python", "-m", "launch", "study", str(arguments.study), "--out", str(out)]
        rest = ["--", *arguments.rest] if arguments.rest else []
        print(f"  state   {shlex.join([*words, '--status', *rest])}")


def _words_of_tasks(study: Study, arguments: argparse.Namespace, out: Path) -> list[str]:
    """The arguments of `launch study` in each task; engine and processes are the script's."""
    words = [str(arguments.study), "--out", str(out)]
    words += ["--only", arguments.only] if arguments.only else []
    words += ["--raw", arguments.raw] if arguments.raw else []
    rest = [*take_imports(arguments.rest)[1], *as_options(study.imports)]
    return words + (["--", *rest] if rest else [])


def _first_configuration(study: Study, out: Path, site: Site) -> Config:
    """The configuration of a run of the study, checked for the shape of the job."""
    trials = trials_of(study, out)
    own = trials[0].overrides(study) if trials else [*study.settings, "run.dir=x"]
    if study.search is not None:
        own += study.search.overrides(study.search.corners()[0])
    return checks.load_for_shape(str(base_file(study, out)), own, site)
