"""Evaluate an export or checkpoint on one split: a classification report and its files.

    python evaluate.py runs/first --split test
    accelerate launch --config_file accelerate_config.yaml --num_processes 4 evaluate.py runs/first

The target is a run directory, an export, or RUN/checkpoints/step-N. Any number of processes gives
the same metrics.json, byte for byte. The files go to RUN/reports/SPLIT-CHECKPOINT/, or --out.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa import runtime

if TYPE_CHECKING:
    from mmsa.data.manifest import Manifest
    from mmsa.export import Export

_SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; returns the exit code (0, or 2 for a user's error)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="run directory, export or checkpoint")
    parser.add_argument("--checkpoint", default="best", help="of a run: best, last or a step")
    parser.add_argument("--shards", help="packed data (default: that of training)")
    parser.add_argument("--split", default="test", choices=_SPLITS)
    parser.add_argument("--out", type=Path, help="directory of the report's files")
    parser.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="no is float32 (default)"
    )
    parser.add_argument(
        "--batch-size", type=_at_least_one, help="samples per forward (default: eval.batch_size)"
    )
    parser.add_argument("--num-workers", type=_count, default=0, help="loader processes per rank")
    arguments = parser.parse_args(argv)
    runtime.prepare_process()
    return runtime.run_command(lambda command: evaluate(command, arguments))


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
    return int(text)


def _at_least_one(text: str) -> int:
    return _count(text, least=1)


def evaluate(command: runtime.Command, arguments: argparse.Namespace) -> None:
    """The story: export, data, predictions of all ranks, report."""
    import torch

    from mmsa.data.manifest import load_manifest
    from mmsa.data.reader import SplitReader
    from mmsa.data.requests import EvaluationRequests
    from mmsa.data.stream import Loader
    from mmsa.errors import UserError
    from mmsa.evaluation import ledger, report
    from mmsa.evaluation.metrics import compute_metrics
    from mmsa.evaluation.predict import predict_split
    from mmsa.export import load_model, load_tokenizer_of, read_export, resolve_export

    started, begin = datetime.now(UTC), time.perf_counter()
    runtime.set_up_logging(command.world, None)
    target = resolve_export(arguments.target, arguments.checkpoint)
    export = read_export(target.directory)
    config = export.config
    shards = arguments.shards or str(config.data.shards)
    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, arguments.split, export.class_map(manifest.classes))
    if not len(reader):
        raise UserError(f"the split '{arguments.split}' of {shards} has no samples to evaluate")
    if manifest.digest != export.facts.get("shards_digest"):
        runtime.logger.info("note: %s are not the shards that the model was trained on", shards)
    batch_size = arguments.batch_size or config.eval.batch_size
    # Sums depend on the number of threads; with a fixed one the results do not depend on the world.
    torch.set_num_threads(config.eval.cpu_threads)
    openings = 0
    if command.world.is_main_process:  # before the loader, which reads ahead
        openings = ledger.record_opening(
            target.home,
            split=arguments.split,
            weights_sha256=export.weights_sha256,
            shards_digest=manifest.digest,
        )
    requests = EvaluationRequests(reader, batch_size, command.world.world_size, command.world.rank)
    batches = Loader(
        requests,
        export.preprocessing,
        load_tokenizer_of(export),
        arguments.num_workers,
        timeout_s=config.data.timeout_s,
    )
    model = load_model(export)
    accelerator = runtime.make_accelerator(arguments.precision)
    command.accelerator = accelerator

    predictions, samples_per_rank = predict_split(
        model.to(accelerator.device),
        batches,
        len(requests),
        accelerator=accelerator,
        label_names=export.label_names,
        num_samples=len(reader),
        progress=True,
    )
    if not accelerator.is_main_process:
        return
    print(report.classification_report_text(predictions))
    out = arguments.out or target.home / "reports" / f"{arguments.split}-{target.name}"
    identity = {
        "split": arguments.split,
        "batch_size": batch_size,
        "precision": arguments.precision,
        "device_type": accelerator.device.type,
        **what_was_evaluated(export, manifest),
    }
    report.write_report(out, predictions, compute_metrics(predictions), identity)
    report.write_run_facts(
        out,
        {
            **runtime.launch_facts(accelerator),
            "host": socket.gethostname(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - begin, 3),
            "samples_per_rank": samples_per_rank,
            "test_split_openings": openings,
        },
    )
    if arguments.split == "test":
        print(f"the test split has been opened {openings} time(s) by {target.home}")
    print(f"report in {out}")


def what_was_evaluated(export: Export, manifest: Manifest) -> dict[str, Any]:
    """Names of data, weights and code for `metrics.json`: nothing of the world, host or time."""
    from mmsa.export import code_version

    return {
        "dataset": manifest.dataset,
        "label_names": list(export.label_names),
        "protocol": {"name": manifest.protocol.name, "hash": manifest.protocol.hash},
        "shards_digest": manifest.digest,
        "weights_sha256": export.weights_sha256,
        "step": export.facts.get("step"),
        "code_version": code_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
