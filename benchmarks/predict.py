"""What evaluation spends outside the forward passes, over ready batches.

    python -m benchmarks.predict EXPORT [--samples N] [--precision no|bf16] [--json FILE]

Reads up to N samples of the validation split into memory, then predicts them with the real loop
(`predict_split`: copies to the device, keys, gathering, sorting). Reports CPU seconds of the loop
and of the forward passes inside it; on a GPU wall time, with the device synchronised after each.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.real_run import clock, write_json

REPEATS = 3


def ready(target: Path, num_samples: int) -> tuple[Any, list[Any], tuple[str, ...]]:
    """(model, batches of validation in memory, class names) of a run or an export."""
    from mmsa.data.batch_requests import EvaluationRequests
    from mmsa.data.manifest import load_manifest
    from mmsa.data.reader import SplitReader
    from mmsa.data.stream import Loader
    from mmsa.export import load_model, load_tokenizer_of, read_export
    from mmsa.export_target import resolve_export

    export = read_export(resolve_export(target, "best").directory)
    shards = str(export.config.data.shards)
    manifest = load_manifest(shards)
    reader = SplitReader(shards, manifest, "val", export.class_map(manifest.classes))
    size = export.config.eval.batch_size
    requests = EvaluationRequests(reader, size, 1, 0)
    loader = Loader(requests, export.preprocessing, load_tokenizer_of(export), 0)
    batches = list(islice(loader, min(len(requests), max(1, num_samples // size))))
    return load_model(export), batches, export.label_names


def measure(target: Path, num_samples: int, precision: str) -> dict[str, float]:
    """Seconds of the loop and of its forward passes, and the rest as a share of the latter."""
    import torch

    from mmsa.engines import engine
    from mmsa.evaluation.predict import predict_split

    model, batches, names = ready(target, num_samples)
    accelerator = engine.make_accelerator(precision)
    torch.set_num_threads(1)
    model.to(accelerator.device)

    forward_s = [0.0]
    forward = model.forward

    def timed(*arguments: Any) -> Any:
        begin = clock()
        output = forward(*arguments)
        forward_s[0] += clock() - begin
        return output

    model.forward = timed
    count = sum(int(batch["num_real"]) for batch in batches)
    rows = []
    for _ in range(REPEATS + 1):
        forward_s[0], begin = 0.0, clock()
        predict_split(
            model, iter(batches), len(batches),
            accelerator=accelerator, label_names=names, num_samples=count,
        )  # fmt: skip
        rows.append((clock() - begin, forward_s[0]))
    loop_s, alone_s = (sum(column) / REPEATS for column in zip(*rows[1:], strict=True))
    return {
        "samples": count, "batches": len(batches), "loop_s": loop_s, "forward_s": alone_s,
        "share": loop_s / alone_s - 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="run or export whose shards still exist")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    found = measure(arguments.target, arguments.samples, arguments.precision)
    print(
        f"{found['samples']} samples in {found['batches']} batches: {found['loop_s']:.3f} s, "
        f"of which forward passes {found['forward_s']:.3f} s; the rest adds {found['share']:.2%}"
    )
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
