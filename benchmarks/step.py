"""A training step of two encoders, compared with the usual ways to write it.

    python -m benchmarks.step [--shards DIR --tokenizer DIR] [--json FILE] [--curves STEPS]
    python -m benchmarks.step --size small --processes 2 --batches 32 --arms accelerate ours ...

--size large: BERT-base and ResNet-50; small: MiniLM and EfficientNet-Lite0. Each arm runs in its
own process or processes (gloo), one thread each, on the same samples. seed: padded to 128, float32,
channels first, plain AdamW, images decoded by Pillow, no workers. accelerate: the loop of
Accelerate's examples, padded to the longest. lightning: its Trainer, if it is installed. ours:
train.py's own step on its own stream. CPU seconds of all processes, or seconds of the GPU if any.
--text-weights, --image-weights: directories of pretrained weights for size small.
--precision: of all arms but seed; a CPU without bf16 instructions needs `no`.
--rounds: the arms alternate, and the fastest round of each counts.
--curves: losses of ours and of plain float32, on the same samples at each step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import real_run, results
from benchmarks.step_peers import MICRO_BATCH, peer

ARMS = ("seed", "accelerate", "lightning", "ours")


def our_settings(options: argparse.Namespace, run_dir: str) -> list[str]:
    pretrained = []
    if options.text_weights:
        pretrained += [f"model.text_encoder.name={options.text_weights}"]
        pretrained += ["model.text_encoder.weights=pretrained", "model.text_encoder.config=null"]
    if options.image_weights:
        pretrained += [f"model.image_encoder.weights={options.image_weights}"]
    return [
        *real_run.settings_of(options.size, options.shards, run_dir, options.tokenizer),
        f"train.global_batch_size={options.batch}",
        f"train.micro_batch_size={options.micro}",
        f"train.mixed_precision={json.dumps(options.precision)}",
        "model.fusion.hidden=[512]",
        *pretrained,
    ]


def ours(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """train.py's own step on the real stream, with default settings."""
    with tempfile.TemporaryDirectory() as folder:
        config, run = real_run.start_run(our_settings(options, folder))
        seen: list[real_run.Shape] = []
        real_run.note_shapes(run, seen)
        for _ in range(2):  # warms up
            real_run.one_step(config, run)
        seen.clear()
        begin = real_run.clock()
        for _ in range(steps):
            real_run.one_step(config, run)
        return {"seconds": real_run.clock() - begin, "shapes": seen}


CURVE = "curve of "
CURVES = {  # the second shows the effect of only another order of additions
    "float32": ["train.mixed_precision=no", "data.bucket_by_length=false"],
    "float32, as ours": ["train.mixed_precision=no"],
    "ours": ["train.mixed_precision=bf16"],
}


def curve(options: argparse.Namespace, name: str, steps: int) -> dict[str, Any]:
    """Losses of `steps` steps with the default warm-up and decay.

    Without dropout, whose draws depend on the precision.
    """
    import torch

    from mmsa.models.encoders import lay_out
    from mmsa.training.optim import learning_rate_share

    text: Any = real_run.SIZES[options.size]["text"]
    no_dropout = ", hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
    settings = [f"model.text_encoder.config={text.rstrip('}')}{no_dropout}"]
    settings += ["model.fusion.dropout=0.0", *CURVES[name]]
    with tempfile.TemporaryDirectory() as folder:
        config, run = real_run.start_run([*our_settings(options, folder), *settings])
        if name == "float32":
            run.bare_model.image_encoder.memory_format = torch.contiguous_format
            lay_out(run.bare_model.image_encoder.body, torch.contiguous_format)
        scales = [learning_rate_share(step, steps, config.optim) for step in range(steps)]
        return {"losses": [float(real_run.one_step(config, run, scale)) for scale in scales]}


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """The result of one arm, in its own process."""
    import torch

    torch.set_num_threads(1)
    if options.arm.startswith(CURVE):
        return curve(options, options.arm.removeprefix(CURVE), options.steps)
    work = ours(options, options.steps) if options.arm == "ours" else None
    work = work or peer(options.arm, options, options.steps)
    plain = options.arm == "seed" or options.precision == "no"
    of_ranks = gathered(
        {
            "seconds": work["seconds"],
            "gflop": sum(real_run.gflop_of(options.size, *shape) for shape in work["shapes"]),
            "samples": sum(shape[0] for shape in work["shapes"]),
            "tokens": sum(rows * tokens for _, rows, tokens in work["shapes"]),
            "peak_gflops": real_run.peak_gflops("float32" if plain else "bfloat16"),
            "memory_mib": results.memory_mib(),
        }
    )
    seconds, gflop, num_samples, tokens = (
        sum(rank[name] for rank in of_ranks) for name in ("seconds", "gflop", "samples", "tokens")
    )
    peak_gflops = sum(rank["peak_gflops"] for rank in of_ranks) / len(of_ranks)
    return {
        "arm": options.arm,
        "precision": "no" if plain else options.precision,
        "global_batch_size": options.batch,
        "samples_per_s": num_samples / seconds,
        "tokens": tokens / num_samples,
        "gflops": gflop / seconds,
        "peak_gflops": peak_gflops,
        "of_peak": gflop / seconds / peak_gflops,
        "memory_mib": max(rank["memory_mib"] for rank in of_ranks),
    }


def gathered(own: dict[str, float]) -> list[dict[str, float]]:
    """What each process of the arm measured, on all of them."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def in_a_process(arm: str, batch: int, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of an arm, as its main rank printed it."""
    command = [sys.executable, "-m", "benchmarks.step", "--arm", arm, "--batch", str(batch)]
    if options.processes > 1:
        launcher = ["torch.distributed.run", "--nproc_per_node", str(options.processes)]
        command[2:2] = [*launcher, "-m"]
    command += ["--steps", str(steps), "--size", options.size, "--shards", options.shards]
    command += ["--tokenizer", options.tokenizer, "--precision", options.precision]
    command += ["--processes", str(options.processes), "--micro", str(options.micro)]
    for name in ("text_weights", "image_weights"):
        if getattr(options, name):
            command += [f"--{name.replace('_', '-')}", getattr(options, name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{arm} at {batch} failed:\n{ended.stderr[-3000:]}")
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[0])
    return found


def fastest_of_rounds(
    arms: list[str], batch: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The fastest round of each arm; the arms alternate."""
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(options.rounds):
        of_round = []
        for arm in arms:
            steps = options.steps or (1 if arm == "seed" or batch > options.micro else 4)
            of_round.append(in_a_process(arm, batch, steps, options))
        rounds.append(of_round)
    return [
        max(of_arm, key=lambda row: float(row["samples_per_s"]))
        for of_arm in zip(*rounds, strict=True)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, each compared with the first arm at its batch size."""
    first = rows[0]["arm"]
    base = {row["global_batch_size"]: row["samples_per_s"] for row in rows if row["arm"] == first}
    headings = ["", "global batch", "samples/s", f"against {first}", "tokens a sample"]
    headings += ["GFLOP/s", "of the peak", "MiB"]
    return results.markdown(
        headings,
        [
            [
                *[row["arm"], row["global_batch_size"], f"{row['samples_per_s']:.2f}"],
                f"{row['samples_per_s'] / base[row['global_batch_size']]:.1f}",
                *[f"{row['tokens']:.0f}", f"{row['gflops']:.0f}", f"{row['of_peak']:.0%}"],
                f"{row['memory_mib']:.0f}",
            ]
            for row in rows
        ],
    )


def compare_curves(options: argparse.Namespace) -> dict[str, Any]:
    """The curves, and the largest relative distance of ten-step means from float32's."""
    import numpy as np

    found: dict[str, Any] = {
        name: in_a_process(CURVE + name, options.micro, options.curves, options)["losses"]
        for name in CURVES
    }
    window = np.ones(10) / 10
    means = {name: np.convolve(losses, window, "valid") for name, losses in found.items()}
    for name in list(CURVES)[1:]:
        apart = float(np.abs(means[name] / means["float32"] - 1).max())
        print(f"mean loss of ten steps, {name} against float32: {apart:.2%} apart at most")
        found[f"{name}, apart"] = apart
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--tokenizer", default="words:30000", help="directory, or words:N")
    parser.add_argument("--size", default="large", choices=tuple(real_run.SIZES))
    parser.add_argument("--text-weights", metavar="DIR", help="small: pretrained, not fresh")
    parser.add_argument(
        "--image-weights", metavar="DIR", help="small: of timm's EfficientNet-Lite0"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--micro", type=int, default=MICRO_BATCH, help="samples in one forward")
    parser.add_argument("--steps", type=int, default=0, help="timed steps of each arm")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="of each arm")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "no"))
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--curves", type=int, default=0, metavar="STEPS")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=MICRO_BATCH, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        found = run_arm(options)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found), flush=True)
        os._exit(0)  # gloo's threads sometimes abort a process at exit
    if options.size != "small" and (options.text_weights or options.image_weights):
        parser.error("--text-weights and --image-weights are for --size small")
    if options.processes > 1 and {"seed", "lightning"} & set(options.arms):
        parser.error("seed and lightning run in one process; give --arms accelerate ours")
    arms = [arm for arm in options.arms if arm != "lightning" or importlib.util.find_spec(arm)]
    content: dict[str, Any] = {"hardware": results.hardware(), "rows": []}
    side = 64 if options.size == "tiny" else 256
    with real_run.packed(options.shards, short_side_px=side) as options.shards:
        for batch in options.batches:
            content["rows"] += fastest_of_rounds(arms, batch, options)
        if options.curves:
            content["curves"] = compare_curves(options)
    print(", ".join(f"{name} {value}" for name, value in content["hardware"].items()))
    print(table(content["rows"]))
    results.write_json(options.json, content)


if __name__ == "__main__":
    main()
