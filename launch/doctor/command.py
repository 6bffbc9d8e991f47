"""`python -m launch doctor`: examine nodes before a job does, and forecast a run (docs/doctor.md).

    doctor --here --shards OUT
    doctor --nodes 2 --gpus-per-node 8 --partition gpu \\
        --shards OUT --run-dir runs/first
    doctor --nodes 2 --gpus-per-node 8 -- \\
        CONFIG data.shards=OUT run.dir=runs/first

Inside a SLURM job it examines the nodes of the job, with --nodes it requests some by salloc, and
otherwise it examines this machine. With CONFIG it also looks for weights and forecasts the run.
Exit code 0, 1 (warnings) or 2 (errors).
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.extensions import as_options, take_imports

if TYPE_CHECKING:
    from launch.doctor.node import Request
    from launch.doctor.report import Examination

_TIME_MINUTES = 15  # that are requested of SLURM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--here", action="store_true", help="examine this machine alone")
    parser.add_argument("--nodes", type=int, metavar="N", help="request N nodes by salloc")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs that a node must have")
    parser.add_argument("--partition", help="as for salloc")
    parser.add_argument("--shards", type=Path, metavar="OUT", help="packed set to read")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where runs write")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="port of the rendezvous")
    parser.add_argument(
        "--cpu-processes", type=int, default=1, metavar="N", help="ranks per node without GPUs"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that each step may take on a node (default: 60 to 300, by step)",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output")
    parser.add_argument("--site", type=Path, metavar="FILE", help="site file to use")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.doctor.report import show

    _check(arguments)
    if arguments.nodes and not arguments.here and not _in_a_job():
        return _in_an_allocation(arguments)
    try:
        examination = examine(arguments)
        if arguments.json:
            print(examination.as_json())
        else:
            show(examination)
    except (UserError, BrokenPipeError):
        raise
    except Exception:
        # Python would end with 1, which means warnings: the job that waits for this one would run.
        traceback.print_exc()
        return EXIT_USER_ERROR
    return examination.exit_code


def _in_a_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def _check(arguments: argparse.Namespace) -> None:
    if arguments.here and (arguments.nodes or arguments.partition):
        raise UserError("--here examines this machine; leave out --nodes and --partition")
    for name in ("nodes", "cpu_processes"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number}: expected at least 1")
    if arguments.partition and not arguments.nodes:
        raise UserError(f"--partition {arguments.partition}: how many nodes? add --nodes 2")
    timeout_s = arguments.timeout
    if timeout_s is not None and not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise UserError(f"--timeout {timeout_s:g}: expected seconds, more than 0")
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: expected 1 to 65535")


def _in_an_allocation(arguments: argparse.Namespace) -> int:
    """Request the nodes, and run this command again inside the allocation."""
    from launch import slurm_queue
    from launch.site import load_site

    slurm_queue.require()
    site = load_site(arguments.site, partition=arguments.partition)
    gpus = arguments.gpus_per_node if arguments.gpus_per_node is not None else site.gpus_per_node
    options = {
        "nodes": arguments.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus,
        "cpus-per-task": site.cpus_per_task,
        "mem": site.mem,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": _TIME_MINUTES,
        "job-name": "doctor",
    }
    command = ["salloc", *[f"--{key}={value}" for key, value in options.items() if value]]
    for key, value in site.sbatch.items():
        if value is not False:
            command.append(f"--{key}" if value is True else f"--{key}={value}")
    inside = [sys.executable, "-m", "launch", *as_options(arguments.imports), "doctor"]
    inside += _options(arguments)
    print(f"requesting {arguments.nodes} node(s)", file=sys.stderr)
    code = subprocess.call([*command, *inside])
    if code not in (0, 1, 2, 130):
        raise UserError(f"salloc ended with {code}; see its message above")
    return code


def _options(arguments: argparse.Namespace) -> list[str]:
    words = [f"--cpu-processes={arguments.cpu_processes}", f"--port={arguments.port}"]
    for name in ("gpus_per_node", "shards", "run_dir", "timeout", "site"):
        if getattr(arguments, name) is not None:
            words.append(f"--{name.replace('_', '-')}={getattr(arguments, name)}")
    words += ["--json"] * arguments.json
    return [*words, *(["--", *arguments.rest] if arguments.rest else [])]


def examine(arguments: argparse.Namespace) -> Examination:
    """All steps in their order: what is cheap and explains what follows comes first."""
    from launch.doctor.examination import Examiner
    from launch.doctor.nodes import Nodes
    from launch.site import load_site

    site = load_site(arguments.site)
    inside = _in_a_job() and not arguments.here
    nodes = Nodes.of_this_job(site.container or "") if inside else Nodes.here()
    if arguments.nodes and inside and arguments.nodes != len(nodes.names):
        raise UserError(
            f"--nodes {arguments.nodes}, but this SLURM job has {len(nodes.names)}; leave it out"
        )
    gpus = arguments.gpus_per_node
    if gpus is None:
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) if inside else 0
    request = _request(arguments, gpus, site.cache or "")
    return Examiner(nodes, request, gpus=gpus, timeout_s=arguments.timeout).examine()


def _request(arguments: argparse.Namespace, gpus: int, cache: str) -> Request:
    """What all steps get. A configuration also says which shards and run directory are meant."""
    from mmsa.config import load_config
    from mmsa.extensions import import_extensions
    from mmsa.process.arguments import take_configuration

    imports, words = take_imports(arguments.rest)
    shards, run_dir = arguments.shards, arguments.run_dir
    if words:
        import_extensions(imports)
        config = load_config(*take_configuration(None, words))
        shards, run_dir = shards or config.data.shards, run_dir or config.run.dir
    return {
        "port": arguments.port,
        "gpus": gpus,
        "run_dir": str(Path(run_dir).absolute()) if run_dir else "",
        "shards": str(Path(shards).absolute()) if shards else "",
        "words": words,
        "imports": [*arguments.imports, *imports],
        "cache": str(Path(cache).expanduser().resolve()) if cache else "",
        "processes": gpus or arguments.cpu_processes,
    }
