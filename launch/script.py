"""Fill in a job script of launch/slurm/: the result can be submitted by itself.

#SBATCH --KEY=...     gets the requested value; missing keys are added
NAME=${NAME:-...}     in the site block gets its value too
# ---- setup          is followed by the site's setup lines
# ---- arguments      is followed by `set -- ...`, the arguments of the script

Every value arrives as it was given, whatever characters it holds. Three rules apply: bash's for
variables and arguments (`shlex.quote`), sbatch's for #SBATCH lines (`_option`), and sbatch's for
the names of log files (`log_pattern`). What a rule has no way to write is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.site import ROOT, Site
from launch.slurm_partitions import Shape
from mmsa.errors import UserError
from mmsa.foundation.durations import seconds_of_limit

SCRIPTS = ROOT / "launch" / "slurm"
_SETUP, _ARGUMENTS = "# ---- setup", "# ---- arguments"

# Options of sbatch by the keys of the site file, which are also the options of `submit`.
_OPTIONS = ("partition", "account", "qos", "nodes", "gpus_per_node", "cpus_per_task", "mem", "time")
_SETTINGS = ("engine", "cpu_processes", "max_restarts", "max_retries", "container")
_ON_ONE_NODE = ("pack", "merge")  # and without GPUs
# Of a node with GPUs, for each of them, unless the site says otherwise: a rank, its loader
# processes (mmsa/engines/gpu_supply.py) and what they hold.
CPUS_PER_GPU, MEMORY_GB_PER_GPU = 8, 32


def fill_in(
    kind: str,
    site: Site,
    arguments: Sequence[str],
    *,
    options: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> str:
    """The text of `launch/slurm/KIND.sbatch` with the site's values.

    `options` are further sbatch options (output, array), `settings` further variables.
    """
    lines = (SCRIPTS / f"{kind}.sbatch").read_text(encoding="utf-8").splitlines()
    site = by_gpu(kind, site)
    requested = {key: getattr(site, key) for key in _OPTIONS}
    if kind in _ON_ONE_NODE:
        requested |= {"nodes": None, "gpus_per_node": None}
    sbatch = {key.replace("_", "-"): str(value) for key, value in requested.items() if value}
    sbatch |= {
        key.replace("_", "-"): "" if value is True else str(value)
        for key, value in site.sbatch.items()
        if value is not False
    }
    if site.time and any(line.startswith("#SBATCH --signal=") for line in lines):
        sbatch.setdefault("signal", f"B:USR1@{warning_s(site.time)}")
    sbatch |= {"chdir": str(ROOT), **options}
    variables = {key.upper(): getattr(site, key) for key in _SETTINGS} | dict(settings or {})
    lines = _with_options(lines, sbatch)
    lines = [_with_variable(line, variables) for line in lines]
    setup = list(site.setup)
    if site.cache and kind not in _ON_ONE_NODE:
        setup += [f"export {name}={shlex.quote(path)}" for name, path in caches(site.cache).items()]
    # From the end, so that the second marker is not looked for among the site's lines.
    lines = _insert_after(lines, _ARGUMENTS, [f"set -- {shlex.join(arguments)}"])
    lines = _insert_after(lines, _SETUP, setup)
    return _checked("\n".join(lines) + "\n", kind)


def by_gpu(kind: str, site: Site) -> Site:
    """The site with cores and memory of a node in proportion to its GPUs, where it says neither."""
    if kind in _ON_ONE_NODE or not site.gpus_per_node:
        return site
    memory = any(key.replace("_", "-").startswith("mem") for key in site.sbatch)
    return site.model_copy(
        update={
            "cpus_per_task": site.cpus_per_task or CPUS_PER_GPU * site.gpus_per_node,
            "mem": site.mem or (None if memory else f"{MEMORY_GB_PER_GPU * site.gpus_per_node}G"),
        }
    )


def log_pattern(folder: Path, name: str) -> str:
    """The value of --output for the log `name` in `folder`; `name` may hold sbatch's %j, %A, %a.

    Raises `UserError` where the folder's name holds a backslash: sbatch then replaces nothing.
    """
    if "\\" in str(folder):
        raise UserError(
            f"the log of the job would be in {folder}, and SLURM has no way to write a log to a "
            "path with a backslash; choose a path without one"
        )
    return f"{str(folder).replace('%', '%%')}/{name}"


def log_path(pattern: str, **symbols: str) -> str:
    """The path that SLURM makes of a `log_pattern`, as in `log_path(pattern, j="17")`."""
    known = {"%": "%", **symbols}
    return re.sub(r"%([%jAa])", lambda found: known.get(found[1], found[0]), pattern)


def shape_of(kind: str, site: Site) -> Shape:
    """What a job of `launch/slurm/KIND.sbatch` requests: from the site, else from the script."""
    text = (SCRIPTS / f"{kind}.sbatch").read_text(encoding="utf-8")
    site = by_gpu(kind, site)
    script = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.M))
    on_one_node = kind in _ON_ONE_NODE
    return Shape(
        nodes=1 if on_one_node else site.nodes or int(script["nodes"]),
        cpus=site.cpus_per_task or int(script["cpus-per-task"]),
        gpus=0 if on_one_node else site.gpus_per_node or 0,
        time=site.time or script["time"],
    )


def caches(directory: str) -> dict[str, str]:
    """The environment variables that put both libraries' caches under `directory`."""
    return {"HF_HOME": f"{directory}/huggingface", "TORCH_HOME": f"{directory}/torch"}


def warning_s(time: str) -> int:
    """Seconds before the time limit at which a job must save: 300, or a quarter of a short limit.

    A short job that is warned right after its start would be requeued again and again without
    making a step. SLURM may warn up to 60 s early. Raises `UserError` for an invalid time.
    """
    seconds = seconds_of_limit(time)
    if seconds is None:
        raise UserError(f"--time {time}: expected MINUTES, HH:MM:SS or D-HH:MM:SS, as in 04:00:00")
    return min(300, seconds // 4)


def _with_options(lines: list[str], options: Mapping[str, str]) -> list[str]:
    """Set the values of existing `#SBATCH` lines; new ones follow the last of them."""
    done, remaining, last = [], dict(options), 0
    for line in lines:
        found = re.match(r"#SBATCH --([\w-]+)", line)
        if found and found[1] in remaining:
            line = _option(found[1], remaining.pop(found[1]))
        if not line.startswith("##SBATCH"):  # a commented example, which is dropped
            done.append(line)
        if line.startswith("#SBATCH"):
            last = len(done)
    return [*done[:last], *(_option(key, value) for key, value in remaining.items()), *done[last:]]


def _option(key: str, value: str) -> str:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise UserError(
            f"--{key} {value!r}: a line of #SBATCH cannot contain a line break or another control "
            "character; give a value without it"
        )
    # For sbatch a space or # ends a value; inside quotes it knows a backslash and the quote.
    quoted = value
    if not re.fullmatch(r"[\w.,:=@%/+*()\[\]-]*", value, re.ASCII):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        quoted = f'"{escaped}"'
    return f"#SBATCH --{key}={quoted}" if value else f"#SBATCH --{key}"


def _checked(text: str, kind: str) -> str:
    """`text`; `UserError` where it holds a character that a script cannot."""
    found = re.search("[\0\ud800-\udfff]", text)
    if found:
        line = text[: found.start()].rpartition("\n")[2] + text[found.start() :].partition("\n")[0]
        raise UserError(
            f"the script of the {kind} job would contain {found[0]!r} in {line!r}; a script holds "
            "text in UTF-8 without NUL: give a value without this character"
        )
    return text


def _with_variable(line: str, variables: Mapping[str, object]) -> str:
    found = re.match(r"([A-Z_]+)=\$\{\1:-", line)
    if found is None or variables.get(found[1]) is None:
        return line
    return f"{found[1]}={shlex.quote(str(variables[found[1]]))}"


def _insert_after(lines: list[str], marker: str, added: Sequence[str]) -> list[str]:
    at = lines.index(marker) + 1
    return [*lines[:at], *added, *lines[at:]]
