"""`python -m launch run -n 4 CONFIG section.key=value ...`: train on this machine.

    run -n 4 launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first
    run -n 4 --engine zero2 launch/runs/full_finetune.yaml \\
        data.shards=OUT run.dir=runs/first
    run -n 4 evaluate.py runs/first --split test

Checks what it can before it starts ranks, then starts `accelerate launch` with the configuration
file of the engine. Shows what the ranks say, without the launcher's tracebacks, and passes on their
exit code: 0 done, 2 something to fix, 75 stopped and resumable (docs/run-directory.md). What the
launcher said, if anything, is in RUN/launch.log. --dry-run checks settings and shards, prints the
command and starts nothing.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.site import ROOT
from mmsa.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from mmsa.extensions import add_import_option, as_options, import_extensions, take_imports
from mmsa.foundation.closed_stdout import EXIT_CLOSED_STDOUT
from mmsa.foundation.command_line import CommandParser, unknown_option
from mmsa.process.arguments import take_configuration

if TYPE_CHECKING:
    from launch.ranks import Ended

LOG_NAME = "launch.log"
ENGINES = ("ddp", "zero1", "zero2", "zero3")
_OF_COMMANDS = (EXIT_USER_ERROR, EXIT_PREEMPTED, EXIT_INTERRUPTED, EXIT_CLOSED_STDOUT)
_EXIT_CODES = (0, 1, *_OF_COMMANDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False  # options of evaluate.py are passed on
    parser.add_argument(
        "-n",
        "--num-processes",
        type=int,
        metavar="N",
        help="processes: one per GPU, or CPU processes without a GPU (default: all GPUs, or 1)",
    )
    parser.add_argument("--engine", choices=ENGINES, help="default: launch.engine, or ddp")
    parser.add_argument("--config", metavar="FILE", help="CONFIG, as train.py has it")
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings and shards, start nothing"
    )
    # A name of its own: the option before the command would lose its modules.
    add_import_option(parser, dest="modules")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG section.key=value",
        help="what to train; or evaluate.py and its arguments",
    )
    parser.set_defaults(run=_run, passes_on="all")


def _run(arguments: argparse.Namespace) -> int:
    later, words = take_imports([*arguments.words, *arguments.rest])
    import_extensions([*arguments.modules, *later])
    imports = as_options([*arguments.imports, *arguments.modules, *later])
    if arguments.num_processes is not None and arguments.num_processes < 1:
        raise UserError(
            f"-n {arguments.num_processes}: expected the number of processes, such as 2"
        )
    if words[:1] in (["evaluate.py"], ["evaluate"]):
        return _evaluate(arguments, [*words[1:], *imports])
    if words[:1] in (["train.py"], ["train"]):  # as after `accelerate launch`
        words = words[1:]
    return _train(arguments, words, imports)


def _train(arguments: argparse.Namespace, words: list[str], imports: list[str]) -> int:
    from launch import checks
    from mmsa.process.status import STATUS_NAME, read_status
    from mmsa.training.checkpoints.resume import finished_in_words

    file, overrides = _file_and_overrides(arguments.config, words)
    processes = _num_processes(arguments.num_processes)
    config = checks.load_for_ranks(file, overrides, engine=arguments.engine, processes=processes)
    shape = [
        f"launch.engine={config.launch.engine}",
        f"launch.world_size={config.launch.world_size}",
    ]
    run_dir = Path(str(config.run.dir))
    if checks.check_ranks(config):
        print(finished_in_words(run_dir))
        return 0
    options = ["--config", file] if file else []
    passed = [*options, *overrides, *shape, *imports]
    command = _command(config.launch.engine, int(config.launch.world_size), "train.py", passed)
    if arguments.dry_run:
        looked = ["python", "-m", "launch", *imports, "prefetch", "--offline"]
        looked += [*options[1:], *overrides]
        weights = f"weights were not looked for: {shlex.join(looked)}"
        return _show(command, weights)
    before = read_status(run_dir / STATUS_NAME)
    ended = _start(command)
    after = read_status(run_dir / STATUS_NAME)
    # Without a status of this launch the directory may belong to something else.
    log = _write_log(run_dir, command, ended) if after != before else None
    return conclude(ended, after if after != before else {}, log)


def _evaluate(arguments: argparse.Namespace, words: list[str]) -> int:
    from launch.checks import default_processes
    from mmsa.evaluation.arguments import build_parser, check_arguments
    from mmsa.evaluation.report.read_report import is_report
    from mmsa.export_target import resolve_export

    options = build_parser().parse_intermixed_args(words)
    check_arguments(options)
    for path in options.targets:
        if not is_report(path):
            resolve_export(path, options.checkpoint)
    if arguments.engine not in (None, "ddp"):
        raise UserError(
            f"--engine {arguments.engine}: evaluation shares its batches among processes without "
            "an engine, whatever the run was trained with; leave --engine out"
        )
    processes = _num_processes(arguments.num_processes)
    command = _command("ddp", processes or default_processes(), "evaluate.py", words)
    return _show(command) if arguments.dry_run else conclude(_start(command), {}, None)


def _file_and_overrides(config: str | None, words: list[str]) -> tuple[str | None, list[str]]:
    """The configuration file, which may be left out, and the settings around it."""
    file, overrides = take_configuration(config, words)
    for word in overrides:  # before the words: one of them may be the value of a mistyped option
        if word.startswith("-"):
            raise UserError(unknown_option(word, _options()))
    strange = [word for word in overrides if "=" not in word]
    if strange:
        raise UserError(
            f"{strange[0]} is neither a configuration file nor a setting; expected one of the "
            "first and section.key=value, for example: python -m launch run -n 2 "
            "launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first; or, to evaluate, "
            "python -m launch run -n 2 evaluate.py RUN"
        )
    return file, overrides


def _options() -> list[str]:
    parser = CommandParser()
    add_arguments(parser)
    return parser.options()


def _num_processes(number: int | None) -> int | None:
    """`number`; `UserError` where the machine has GPUs, but fewer."""
    import torch

    gpus = torch.cuda.device_count()
    if number is not None and 0 < gpus < number:
        raise UserError(
            f"-n {number}: {gpus} GPU(s) are visible here, and each process needs its own; give "
            f"-n {gpus}, or start CPU processes with CUDA_VISIBLE_DEVICES= in front"
        )
    return number


def _command(engine: str, processes: int, script: str, words: Sequence[str]) -> list[str]:
    """The words after `accelerate launch`. Paths are relative in the project's root."""
    root = Path() if Path.cwd() == ROOT else ROOT
    command = ["--config_file", str(root / "launch" / "accelerate" / f"{engine}.yaml")]
    command += ["--num_processes", str(processes)]
    command += ["--main_process_port", "0"]  # any free one
    if engine != "ddp" and root == ROOT:  # its path in the file is relative
        engine_file = root / "launch" / "deepspeed" / f"{engine}.json"
        command += ["--deepspeed_config_file", str(engine_file)]
    return [*command, str(root / script), *words]


def _show(command: list[str], *notes: str) -> int:
    print(shlex.join(["accelerate", "launch", *command]), *notes, sep="\n")
    print("nothing was started (--dry-run)")
    return 0


def _start(command: list[str]) -> Ended:
    from launch.ranks import run_ranks

    sys.stdout.flush()
    return run_ranks(command)


def _write_log(run_dir: Path, command: list[str], ended: Ended) -> Path | None:
    """Add what the launcher said to RUN/launch.log; None if there is nothing to add."""
    if not ended.launcher_said:
        return None
    path = run_dir / LOG_NAME
    with suppress(OSError), open(path, "a", encoding="utf-8") as log:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"{stamp} accelerate launch {shlex.join(command)}\n{ended.launcher_said}\n")
        return path
    return None


def conclude(ended: Ended, status: dict[str, Any], log: Path | None) -> int:
    """The exit code of a launch; says on standard error what its ranks have not explained.

    `status` is what this launch wrote to `status.json`, empty if nothing; `log` is where the
    launcher's words are. Without it they are shown where they are needed: not after a signal.
    """
    code, explained = _exit_code(ended, status)
    if explained:
        return code
    words = f"error: {_what_happened(ended, status)}"
    if log is not None:
        words += f". What the launcher said: {log}"
    elif ended.launcher_said and ended.signal_name is None:
        words += f". The launcher said:\n{ended.launcher_said}"
    print(words, file=sys.stderr)
    return code


def _exit_code(ended: Ended, status: dict[str, Any]) -> tuple[int, bool]:
    """(exit code, whether a rank has explained it). What ends with 1 needs the launcher's words."""
    reported = status.get("exit_code")
    if ended.error is not None:
        return 1, False
    if isinstance(reported, int):
        return reported, reported != 1
    if ended.signal_name is not None:
        return (EXIT_INTERRUPTED, True) if ended.signal_name == "SIGINT" else (1, False)
    if ended.first_failure is None:
        return 0, True
    code = ended.first_failure.exit_code
    if status or code not in _EXIT_CODES:  # "running": it ended before it could report
        return 1, False
    return code, code != 1


def _what_happened(ended: Ended, status: dict[str, Any]) -> str:
    if ended.error is not None:
        return f"accelerate launch failed ({ended.error})"
    if ended.first_failure is None:
        return f"stopped by {ended.signal_name}"
    code = ended.first_failure.exit_code
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {_signal_name(-code)}"
        if -code == signal.SIGKILL:
            how += ", often because memory ran out"
        if -code == signal.SIGABRT:
            how += (
                ", on GPUs often by NCCL's watchdog: a collective did not finish within "
                "run.collective_timeout_s because another rank hangs or is gone (its own words are "
                "above, what each rank did last is in RUN/nccl/)"
            )
    step = f" after step {status['step']}; the same command resumes" if status.get("step") else ""
    return f"rank {ended.first_failure.rank} {how}{step}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
