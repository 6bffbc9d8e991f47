"""The numerics gate: digests of what a fixed set of commands produces, to compare two versions.

    python -m benchmarks.same_bytes before.json                      # on the old version
    python -m benchmarks.same_bytes after.json --against before.json # on the new one: exit code 1
                                                                     # and the names that differ

Packs made-up data twice (MVSA-Single's layout, a CSV table) and, with --raw, a real raw directory;
trains in one process, in two under DDP and in two under ZeRO-2, and in one with an encoder that
reads from left to right and with compiled encoders; evaluates each. A refactor must not change any
digest. Digests are comparable on the same machine and library versions only. --only NAME ... trains
these alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
TWO = ["--num_processes", "2"]
ENGINES = {
    "one process": [sys.executable],
    "DDP, 2 processes": [*LAUNCH, "--config_file", "launch/accelerate/ddp_cpu.yaml", *TWO],
    "ZeRO-2, 2 processes": [*LAUNCH, "--config_file", "launch/accelerate/zero2.yaml", *TWO],
}
SETTINGS = [
    *["train.max_steps=14", "train.validate_every_steps=7", "train.checkpoint_every_steps=7"],
    *["run.log_every_steps=1", "data.num_workers=1", "data.augment=true"],
    "train.mixed_precision=no",
]
# Also in one process, because texts are packed in another way or by other code there.
CAUSAL = (
    "{model_type: gpt2, n_embd: 64, n_layer: 2, n_head: 2, n_positions: 64, bos_token_id: 0, "
    "eos_token_id: 0}"
)
COMPILED = "train.compile=true"
VARIANTS = {
    "causal": [f"model.text_encoder.config={CAUSAL}", "model.text_encoder.pooling=auto"],
    "compiled": [COMPILED],
}
TIMES = ("samples_per_s",)  # fields of a line of metrics.jsonl that depend on time
CODE_VERSION = re.compile(rb'"code_version": "[^"]*"')  # the commit in metrics.json


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def run(command: Sequence[str], log: Path) -> None:
    print(f"$ {' '.join(command)}", flush=True)
    # Of several threads, torch's compiled code adds the gradient of embeddings in any order.
    threads = {"OMP_NUM_THREADS": "1"} if COMPILED in command else {}
    with log.open("a") as stream:
        code = subprocess.run(
            command, cwd=ROOT, stdout=stream, stderr=stream, env=os.environ | threads
        ).returncode
    if code:
        sys.exit(f"exit code {code}:\n{log.read_text()[-3000:]}")


def packed_files(directory: Path) -> dict[str, str]:
    """File name -> digest of every tar, index and the manifest of a packed set."""
    found = sorted([*directory.glob("*.tar"), *directory.glob("*.idx")])
    return {path.name: digest(path.read_bytes()) for path in [*found, directory / "manifest.json"]}


def losses(run_dir: Path) -> str:
    """Digest of `metrics.jsonl` without the fields that depend on time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    assert sum(line["kind"] == "train" for line in kept) == 14, "a training loss for every step"
    return digest(json.dumps(kept, sort_keys=True).encode())


def write_table(raw: Path, file: Path) -> None:
    """The made-up set as a CSV table: text, image path, label of its first annotator."""
    rows = (raw / "labelResultAll.txt").read_text().splitlines()[1:]
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["text", "image", "label"])
        for key, labels in (row.split("\t")[:2] for row in rows):
            text = (raw / "data" / f"{key}.txt").read_bytes().decode("gb18030")
            table.writerow([text, raw / "data" / f"{key}.jpg", labels.split(",")[0]])


def trained(name: str, launcher: list[str], more: list[str], work: Path) -> dict[str, str]:
    """Digests of a training with the settings `more`, and of its evaluation."""
    log, run_dir = work / "log.txt", work / name.split(",")[0].replace(" ", "-")
    settings = [*SETTINGS, *more, f"run.dir={run_dir}"]
    run([*launcher, "train.py", "--config", "launch/runs/demo.yaml", *settings], log)
    run([*launcher, "evaluate.py", str(run_dir), "--split", "test", "--no-page"], log)
    last = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    files = {
        "final weights": last / "export" / "model.safetensors",
        "final optimizer state": last / "optimizer.safetensors",
    }
    report = next((run_dir / "reports").glob("*/metrics.json"))
    return {
        f"{name}: losses and validations": losses(run_dir),
        **{f"{name}: {what}": digest(file.read_bytes()) for what, file in files.items()},
        f"{name}: metrics.json": digest(CODE_VERSION.sub(b"", report.read_bytes())),
    }


def compared(found: dict[str, str], against: Path, left_out: tuple[str, ...]) -> int:
    """1 if a digest is another one in the file `against`, or is in one of the two alone.

    Left out are names that begin with one of `left_out`, and runs of which the file has nothing.
    """
    before = json.loads(against.read_text())
    runs = {name.partition(": ")[0] for name in before}
    new = [name for name in found if name.partition(": ")[0] not in runs]
    names = [name for name in before | found if name not in new and not name.startswith(left_out)]
    differing = [name for name in names if before.get(name) != found.get(name)]
    print(f"{len(names) - len(differing)} of {len(names)} the same")
    for name in differing:
        print(f"DIFFERS: {name}")
    for name in new:
        print(f"not in {against}: {name}")
    return 1 if differing else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="digests of the version to compare with")
    parser.add_argument("--raw", type=Path, help="a real MVSA-Single directory to pack as well")
    names = [*ENGINES, *VARIANTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    arguments = parser.parse_args(argv)
    # The same path each time, because a manifest and a report name their source directories.
    work = Path(tempfile.gettempdir()) / "mmsa-same-bytes"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    work.mkdir(parents=True)
    log, raw, shards = work / "log.txt", work / "raw", work / "shards"
    found: dict[str, str] = {}

    pack = [sys.executable, "-m", "shards", "pack"]
    run([sys.executable, "-m", "shards", "synthetic", str(raw), "--samples", "640"], log)
    write_table(raw, work / "table.csv")
    packed = {"mvsa-single": (raw, shards), "table": (work / "table.csv", work / "table")}
    if arguments.raw:
        packed["real"] = (arguments.raw, work / "real")
    for name, (source, out) in packed.items():
        kind = "table" if name == "table" else "mvsa-single"
        run([*pack, kind, str(source), str(out), "--workers", "2"], log)
        for file, value in packed_files(out).items():
            found[f"packed {name}: {file}"] = value

    for name in arguments.only:
        launcher = ENGINES.get(name, ENGINES["one process"])
        more = [f"data.shards={shards}", *VARIANTS.get(name, [])]
        found |= trained(name, launcher, more, work)

    left_out = tuple(f"{name}: " for name in names if name not in arguments.only)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        print(f"{value[:16]}  {name}")
    if arguments.against is None:
        return 0
    return compared(found, arguments.against, left_out)


if __name__ == "__main__":
    sys.exit(main())
