"""`make demo`: the whole pipeline on synthetic data, from raw files to a classification report.

Writes a small data set in MVSA-Single's raw layout, packs it, trains three models (text only, image
only, both) with `accelerate launch` on all GPUs or on two CPU processes, evaluates the best export
of each on the test split, and prints a table that compares both modalities with each alone.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsa.foundation.command_line import CommandParser
from mmsa.foundation.parsing import parse_json

ROOT = Path(__file__).resolve().parent.parent
NUM_SAMPLES = 4400  # gives a test split of over 400
GLOBAL_BATCH = 32  # as in launch/runs/demo.yaml
RUNS = {"text only": "text_only", "image only": "image_only", "both": "concat"}


def num_processes() -> int:
    """As many GPUs as divide the global batch; two CPU processes if there is no GPU."""
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        return 2
    return max(count for count in (1, 2, 4, 8, 16, 32) if count <= num_gpus)


def run(*command: str) -> None:
    """Print a command and run it in the project's root; exits if it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    python = {
        "python": [sys.executable],
        "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
    }
    code = subprocess.run([*python[command[0]], *command[1:]], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def train_and_evaluate(fusion: str, shards: Path, run_dir: Path, processes: int) -> None:
    """Train one model of the demo and evaluate its best export on the test split."""
    settings = [
        f"data.shards={shards}",
        f"run.dir={run_dir}",
        f"train.micro_batch_size={GLOBAL_BATCH // processes}",
        f"launch.world_size={processes}",
        f"model.fusion.name={fusion}",
    ]
    run(
        *["accelerate", "launch", "--config_file", "accelerate_config.yaml"],
        *["--num_processes", str(processes), "train.py"],
        *["--config", "launch/runs/demo.yaml", *settings],
    )
    run("python", "evaluate.py", str(run_dir), "--split", "test")


def print_comparison(directory: Path) -> None:
    """Print one line per model with its scores on the test split."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the same test split, three models")
    for column in ("model", "accuracy", "macro F1", "weighted F1", "test samples"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, fusion in RUNS.items():
        path = directory / fusion / "reports" / "test-best" / "metrics.json"
        metrics = parse_json(path.read_text(encoding="utf-8"))
        table.add_row(
            name,
            f"{metrics['accuracy']:.4f}",
            f"{metrics['macro']['f1']:.4f}",
            f"{metrics['weighted']['f1']:.4f}",
            str(metrics["num_samples"]),
        )
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo in a directory; returns 0, or the exit code of the command that failed."""
    parser = CommandParser(prog="python -m launch.demo", description=__doc__)
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=ROOT / "build" / "demo",
        help="where data and runs go (default: build/demo)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=NUM_SAMPLES,
        help="tweets that are made up; fewer are faster and score worse (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    directory: Path = arguments.directory.resolve()
    raw, shards = directory / "raw", directory / "shards"
    count = str(arguments.samples)
    run("python", "-m", "shards", "synthetic", str(raw), "--samples", count, "--overwrite")
    run("python", "-m", "shards", "pack", "mvsa-single", str(raw), str(shards), "--overwrite")
    processes = num_processes()
    for fusion in RUNS.values():
        train_and_evaluate(fusion, shards, directory / fusion, processes)
    print_comparison(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
