"""`python -m mmsa serve EXPORT`: the command line. FastAPI and torch are imported when it runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.extensions import add_import_option, import_extensions

DESCRIPTION = (
    "Serves a model: POST /predict, POST /predict/batch, GET /model, /healthz, /readyz, /metrics, "
    "and a page for people at /. Needs the extra mmsa[serve]. Ends on SIGTERM or Ctrl-C when all "
    "accepted requests are answered."
)
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="RUN|EXPORT", help="a run means its best")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any (default: %(default)s)")
    parser.add_argument(
        "--root-path", default="", metavar="PATH", help="prefix under which a proxy shows it"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="clients must send the token in it"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else cpu)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="for the model on a CPU (default: all cores)"
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="batches computed at the same time on a CPU (default: 2)",
    )
    limits = parser.add_argument_group("limits")
    for name, what, default in (
        ("--max-wait-ms", "longest wait of a request for others to compute with it", 5.0),
        ("--max-batch", "rows computed together", 16),
        ("--queue", "requests that may wait; more get 503", 256),
        ("--max-body-mb", "MiB of a request", 16.0),
        ("--max-pixels", "pixels of a picture (default: as in packing)", None),
        ("--max-characters", "characters of a text (default: as in packing)", None),
        ("--max-posts", "posts of one batch request", 256),
        ("--timeout-s", "seconds for a body to arrive, and again for its answer", 30.0),
    ):
        shown = "" if default is None else " (default: %(default)s)"
        limits.add_argument(
            name,
            type=float if isinstance(default, float) else int,
            default=default,
            metavar="N",
            help=what + shown,
        )
    _add_rare(parser)
    add_import_option(parser)
    parser.set_defaults(run=run)


def _add_rare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-requests",
        action="store_true",
        help="log texts too (default: only sizes and times)",
    )
    parser.add_argument(
        "--reload-s",
        type=float,
        default=10.0,
        metavar="N",
        help="seconds after which a run is asked again for a newer best export; 0: never "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="turns on POST /test_model for files below DIR"
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="CONFIG",
        help="turns on POST /train_model for this configuration; needs --token-file",
    )
    parser.add_argument(
        "--training-processes",
        type=int,
        default=1,
        metavar="N",
        help="of a training that /train_model starts (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed; serving needs the extra: "
            "pip install -c constraints.txt 'mmsa[serve]'"
        ) from None
    import_extensions(arguments.imports)
    options = _options(arguments)
    from mmsa.foundation.open_files import allow_open_files
    from mmsa.process.memory import keep_freed_memory
    from mmsa.serve import server
    from mmsa.serve.model import load_served

    allow_open_files()
    keep_freed_memory()
    server.set_up_logging()
    with server.bind(options) as listening:  # before the model, which takes seconds
        model = load_served(arguments.export, options, arguments.device)
        server.run(model, arguments.export, options, listening)
    return 0


def _options(arguments: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from mmsa.serve.options import Options

    given = {
        name: getattr(arguments, name)
        for name in Options.model_fields
        if getattr(arguments, name, None) is not None
    }
    if not math.isfinite(arguments.max_body_mb):
        raise UserError(f"--max-body-mb {arguments.max_body_mb}: expected a number of megabytes")
    given["max_body_bytes"] = round(arguments.max_body_mb * _MIB)
    given["token"] = None if arguments.token_file is None else _token(arguments.token_file)
    try:
        return Options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("max_body_bytes", "max_body_mb").replace("_", "-")
        raise UserError(f"--{option}: {first['msg']}, found {first['input']}") from None


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {file} cannot be read ({error})") from None
    if len(token) < 16 or not token.isascii() or len(token.split()) != 1:
        raise UserError(
            f"--token-file {file} has no usable token; write one word of 16 letters or more into "
            'it, such as that of: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token
