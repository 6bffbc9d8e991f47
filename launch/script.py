"""A job script of launch/slurm/ filled in: a script that can be submitted by itself.

#SBATCH --KEY=...     gets the value that was asked for; keys that the script lacks are added
NAME=${NAME:-...}     of the site's block, the same
# ---- setup          is followed by the site's own lines
# ---- arguments      is followed by `set -- ...`: what the script is about
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from launch.site import ROOT, Site
from launch.slurm_partitions import Shape
from mmsa.durations import seconds_of_limit
from mmsa.errors import UserError

SCRIPTS = ROOT / "launch" / "slurm"
_SETUP, _ARGUMENTS = "# ---- setup", "# ---- arguments"

# sbatch's options by the keys of the site's file, which are the options of `submit`.
_OPTIONS = ("partition", "account", "qos", "nodes", "gpus_per_node", "cpus_per_task", "mem", "time")
_SETTINGS = ("engine", "cpu_processes", "max_restarts", "max_retries", "container")
_ON_ONE_NODE = ("pack", "merge")  # and without GPUs


def fill_in(
    kind: str,
    site: Site,
    arguments: Sequence[str],
    *,
    options: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> str:
    """The text of `launch/slurm/KIND.sbatch` with the site's values.

    `options` are further ones of sbatch (job-name, output, array), `settings` further variables.
    """
    lines = (SCRIPTS / f"{kind}.sbatch").read_text(encoding="utf-8").splitlines()
    asked = {key: getattr(site, key) for key in _OPTIONS}
    if kind in _ON_ONE_NODE:
        asked |= {"nodes": None, "gpus_per_node": None}
    wanted = {key.replace("_", "-"): str(value) for key, value in asked.items() if value}
    wanted |= {
        key.replace("_", "-"): "" if value is True else str(value)
        for key, value in site.sbatch.items()
    }
    if site.time and any(line.startswith("#SBATCH --signal=") for line in lines):
        wanted.setdefault("signal", f"B:USR1@{warning_s(site.time)}")
    wanted |= {"chdir": str(ROOT), **options}
    variables = {key.upper(): getattr(site, key) for key in _SETTINGS} | dict(settings or {})
    lines = _with_options(lines, wanted)
    lines = [_with_variable(line, variables) for line in lines]
    setup = list(site.setup)
    if site.cache and kind not in _ON_ONE_NODE:
        setup += [f"export {name}={shlex.quote(path)}" for name, path in caches(site.cache).items()]
    lines = _behind(lines, _SETUP, setup)
    lines = _behind(lines, _ARGUMENTS, [f"set -- {shlex.join(arguments)}"])
    return "\n".join(lines) + "\n"


def shape_of(kind: str, site: Site) -> Shape:
    """What a job of `launch/slurm/KIND.sbatch` asks for: of the site, else as the script says."""
    text = (SCRIPTS / f"{kind}.sbatch").read_text(encoding="utf-8")
    said = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.M))
    alone = kind in _ON_ONE_NODE
    return Shape(
        nodes=1 if alone else site.nodes or int(said["nodes"]),
        cpus=site.cpus_per_task or int(said["cpus-per-task"]),
        gpus=0 if alone else site.gpus_per_node or 0,
        time=site.time or said["time"],
    )


def caches(directory: str) -> dict[str, str]:
    """The variables that name the caches of Hugging Face and torchvision below `directory`."""
    return {"HF_HOME": f"{directory}/huggingface", "TORCH_HOME": f"{directory}/torch"}


def warning_s(time: str) -> int:
    """Seconds before the limit `time` at which a job is told to save: 300, or a quarter of it.

    Warned from its beginning, a short job would be requeued again and again without a step. SLURM
    may warn up to 60 s early. Raises `UserError` for what is no time of SLURM's.
    """
    seconds = seconds_of_limit(time)
    if seconds is None:
        raise UserError(f"--time {time}: expected MINUTES, HH:MM:SS or D-HH:MM:SS, as in 04:00:00")
    return min(300, seconds // 4)


def _with_options(lines: list[str], wanted: Mapping[str, str]) -> list[str]:
    """`#SBATCH` lines get their values, in their places; new ones follow the last."""
    done, left, last = [], dict(wanted), 0
    for line in lines:
        found = re.match(r"#SBATCH --([\w-]+)", line)
        if found and found[1] in left:
            line = _option(found[1], left.pop(found[1]))
        if not line.startswith("##SBATCH"):  # an example, whose place is taken by what is asked
            done.append(line)
        if line.startswith("#SBATCH"):
            last = len(done)
    return [*done[:last], *(_option(key, value) for key, value in left.items()), *done[last:]]


def _option(key: str, value: str) -> str:
    # A space or # would end the value for sbatch, quotes are understood.
    quoted = f'"{value}"' if re.search(r"[\s#]", value) else value
    return f"#SBATCH --{key}={quoted}" if value else f"#SBATCH --{key}"


def _with_variable(line: str, variables: Mapping[str, object]) -> str:
    found = re.match(r"([A-Z_]+)=\$\{\1:-", line)
    if found is None or variables.get(found[1]) is None:
        return line
    return f"{found[1]}={shlex.quote(str(variables[found[1]]))}"


def _behind(lines: list[str], marker: str, added: Sequence[str]) -> list[str]:
    at = lines.index(marker) + 1
    return [*lines[:at], *added, *lines[at:]]
