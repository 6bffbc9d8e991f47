"""`python -m mmsa export EXPORT --onnx DIR | --hub DIR`: the command line.

Imports torch only when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmsa.errors import UserError
from mmsa.extensions import add_import_option, import_extensions

DESCRIPTION = (
    "Writes a trained model in a form that other programs read: ONNX, compared with torch on real "
    "samples, or the layout of the Hugging Face hub with a model card. How to: docs/export.md."
)
_SPLIT = "val"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="EXPORT", help="an export or a run directory")
    _add_onnx(parser.add_argument_group("ONNX"))
    _add_hub(parser.add_argument_group("Hugging Face hub"))
    add_import_option(parser)
    parser.set_defaults(run=run)


def _add_onnx(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--onnx", type=Path, metavar="DIR", help="new directory for the ONNX files")
    group.add_argument(
        "--int8",
        action="store_true",
        help="also a graph with weights of matrix products in 8 bits, and what it costs and gains",
    )
    group.add_argument(
        "--shards", help="packed data whose validation split is compared (default: of the training)"
    )
    group.add_argument(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="validation samples that are compared (default: %(default)s)",
    )


def _add_hub(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--hub", type=Path, metavar="DIR", help="new directory for the hub's files")
    group.add_argument("--push", metavar="ORG/NAME", help="upload it: weights, then the model card")
    group.add_argument("--private", action="store_true", help="with --push: a private repository")
    group.add_argument(
        "--card-only", action="store_true", help="with --push: replace the model card alone"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="with --push: say what would be uploaded"
    )
    group.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a report of evaluate.py for the card (default: those below the run's reports/)",
    )
    group.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the hub names it (apache-2.0)"
    )
    group.add_argument(
        "--package",
        metavar="SPEC",
        help="what pip installs as mmsa in an endpoint, such as git+https://HOST/ORG/mmsa@TAG",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write what the arguments say and print what was done; returns the exit code."""
    _check(arguments)
    import_extensions(arguments.imports)
    from mmsa.process import runtime

    runtime.prepare_process()
    runtime.set_up_logging(runtime.world_from_environment(), None)
    if arguments.onnx is not None:
        print(_onnx(arguments))
    if arguments.hub is not None:
        print(_hub(arguments))
    return 0


def _onnx(arguments: argparse.Namespace) -> str:
    from mmsa.exporting.onnx.write import require_packages, summary, write_onnx
    from mmsa.foundation.new_directory import check_free

    require_packages()
    check_free(arguments.onnx)
    from mmsa.evaluation.inputs.eval_target import Request, open_target

    target = open_target(Request(arguments.export, "best", arguments.shards, _SPLIT, None))
    exported = write_onnx(
        target, arguments.onnx, int8=arguments.int8, num_samples=arguments.samples
    )
    return summary(arguments.onnx, exported)


def _hub(arguments: argparse.Namespace) -> str:
    from mmsa.exporting.hub.push import check_name, push
    from mmsa.exporting.hub.write import HubOptions, write_hub

    if arguments.push is not None:
        check_name(arguments.push)
    options = HubOptions(
        name=arguments.push,
        license=arguments.license,
        package=arguments.package,
        reports=arguments.report,
    )
    said = [write_hub(arguments.export, arguments.hub, options)]
    if arguments.push is not None:
        said.append(
            push(
                arguments.hub,
                arguments.push,
                private=arguments.private,
                card_only=arguments.card_only,
                dry_run=arguments.dry_run,
            )
        )
    return "\n".join(said)


def _check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options that make no sense together, before anything is opened."""
    if arguments.onnx is None and arguments.hub is None:
        raise UserError("give --onnx DIR or --hub DIR: where to write, and in which form")
    if arguments.int8 and arguments.onnx is None:
        raise UserError("--int8 is for --onnx DIR; add it, or leave --int8 out")
    if arguments.samples < 1:
        raise UserError(f"--samples {arguments.samples}: expected an integer of at least 1")
    if arguments.push is not None and arguments.hub is None:
        raise UserError("--push uploads what --hub DIR writes; add --hub DIR")
    alone = [name for name in ("private", "card_only", "dry_run") if getattr(arguments, name)]
    if alone and arguments.push is None:
        flag = alone[0].replace("_", "-")
        raise UserError(f"--{flag} is for --push ORG/NAME; add it, or leave --{flag} out")
