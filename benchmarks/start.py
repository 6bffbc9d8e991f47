"""Start and stop: the time spent outside the steps.

    python -m benchmarks.start [--world 2] [--no-stall] [--json FILE]

Measures `--help` of each command; CPU seconds of all processes of a one-step launch of the demo and
of its evaluation, with the lines that both log about their start (wall time); a validation by
parts; the agreement on a stop; a checkpoint compared with the same without digests, and with a
plain write and flush of the same bytes (wall and CPU time, alternating).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import real_run, results
from mmsa.foundation import digests
from mmsa.foundation.digests import FileDigest
from mmsa.training.checkpoints import checkpoint
from mmsa.training.checkpoints.collective_write import wait_for_removals

COMMANDS = (
    *(["train.py"], ["evaluate.py"], ["-m", "shards"], ["-m", "shards", "pack"]),
    *(["-m", "launch"], ["-m", "launch.demo"]),
)


class Ended(NamedTuple):
    """A finished command: CPU seconds of all processes that it started and waited for, and when it
    logged the line about its start, in seconds of wall time since it was launched."""

    cpu_s: float
    start_s: float | None
    line: str | None


def command_of(command: list[str]) -> Ended:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    begin, start_s, found = time.perf_counter(), None, None
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("start: ") and found is None:
                start_s, found = time.perf_counter() - begin, line.strip()
        if process.wait() != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(spent, start_s, found)


def launches(world: int, shards: str) -> dict[str, Ended]:
    """CPU seconds of the smallest run (the demo with one step, a validation and a save) and of the
    evaluation of its export, with the line that each logs about its start."""
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    start += ["--config_file", "accelerate_config.yaml", "--num_processes", str(world)]
    start += ["--main_process_port", "0"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = [f"data.shards={shards}", f"run.dir={folder}/run", "train.max_steps=1"]
        for name, command in {
            "training to its first step": ["train.py", "--config", "launch/runs/demo.yaml", *run],
            "evaluation to its first batch": ["evaluate.py", f"{folder}/run", "--split", "val"],
        }.items():
            found[name] = command_of([*start, *command])
    return found


def validation(shards: str, rounds: int = 3) -> dict[str, float]:
    """Milliseconds of a validation, wall time: until its first batch, in forward passes, waiting
    for further batches, and everything else; medians."""
    import torch

    torch.set_num_threads(1)
    parts: dict[str, list[float]] = {name: [] for name in ("first batch", "forward", "batches")}
    whole = []
    with tempfile.TemporaryDirectory() as folder:
        settings = real_run.settings_of("tiny", shards, f"{folder}/run", "words:30000")
        config, run = real_run.start_run([*settings, "data.num_workers=2"])
        waits: list[float] = []
        forwards: list[float] = []
        run.loaders.validation = timed_items(run.loaders.validation, waits)
        forward = run.bare_model.forward

        def timed_forward(*inputs: Any) -> Any:
            begin = time.perf_counter()
            output = forward(*inputs)
            forwards.append(time.perf_counter() - begin)
            return output

        for _ in range(rounds):
            real_run.one_step(config, run)
            run.bare_model.forward = timed_forward
            begin = time.perf_counter()
            run.validate()
            whole.append(time.perf_counter() - begin)
            run.bare_model.forward = forward
            for name, times in zip(parts, (waits[:1], forwards, waits[1:]), strict=True):
                parts[name].append(sum(times))
            waits.clear()
            forwards.clear()
        found = {name: 1e3 * statistics.median(values) for name, values in parts.items()}
        samples = run.data.num_validation_samples
    beside = [all_s - sum(values) for all_s, *values in zip(whole, *parts.values(), strict=True)]
    return {"samples": samples, **found, "beside": 1e3 * statistics.median(beside)}


def timed_items(items: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    while True:
        begin = time.perf_counter()
        item = next(items)
        waits.append(time.perf_counter() - begin)
        yield item


def stall(shards: str, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of a checkpoint and of a plain write and flush of the same bytes, alternating:
    wall time, and CPU time of the process with its threads.

    Both write new files, what they replace is removed after timing, and memory for them is already
    mapped: a virtual machine may have to get it from its host, which takes seconds.
    """
    import torch

    torch.set_num_threads(1)
    saves: list[float] = []
    save_cpu: list[float] = []
    plain: list[float] = []
    plain_cpu: list[float] = []
    bare: list[float] = []  # a save without digests
    bare_cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run_dir, copy = Path(folder) / "run", Path(folder) / "copy"
        settings = real_run.settings_of("large", shards, str(run_dir), "words:30000")
        settings += ["train.global_batch_size=4", "train.micro_batch_size=4"]
        config, run = real_run.start_run([*settings, "train.keep_checkpoints=1"])
        real_run.one_step(config, run)
        run.save_checkpoint()
        newest = checkpoint.newest_checkpoint(run_dir)
        assert newest is not None
        contents = [path.read_bytes() for path in newest.rglob("*") if path.is_file()]
        num_bytes = sum(map(len, contents))
        for _ in range(rounds):
            run.state.step += 1
            _append(by_clock(run.save_checkpoint, num_bytes), saves, save_cpu)
            wait_for_removals()
            run.state.step += 1
            with without_digests():
                _append(by_clock(run.save_checkpoint, num_bytes), bare, bare_cpu)
            wait_for_removals()
            shutil.rmtree(checkpoint.checkpoint_path(run_dir, run.state.step))
            copy.mkdir()
            _append(by_clock(lambda: write_plainly(copy, contents), num_bytes), plain, plain_cpu)
            shutil.rmtree(copy)
    return {
        "mb": num_bytes / 1e6,
        "save_ms": 1e3 * statistics.median(saves),
        "plain_ms": 1e3 * statistics.median(plain),
        "bare_ms": 1e3 * statistics.median(bare),
        "bare_cpu_ms": 1e3 * statistics.median(bare_cpu),
        "save_cpu_ms": 1e3 * statistics.median(save_cpu),
        "plain_cpu_ms": 1e3 * statistics.median(plain_cpu),
        "times": statistics.median(s / p for s, p in zip(saves, plain, strict=True)),
    }


@contextmanager
def without_digests() -> Iterator[None]:
    """Within it checkpoints are written with made-up digests: what computing them costs."""

    def made_up(*_: object) -> FileDigest:
        return FileDigest(0, 64 * "0")

    with (
        mock.patch.object(digests, "digest_of_file", made_up),
        mock.patch.object(checkpoint, "digest_of_file", made_up),
    ):
        yield


def write_plainly(folder: Path, contents: list[bytes]) -> None:
    """Write each of `contents` to a file with only open, write and fsync."""
    for number, content in enumerate(contents):
        with open(folder / str(number), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


def by_clock(work: Callable[[], object], num_bytes: int) -> tuple[float, float]:
    """Wall and CPU seconds of `work`, after allocating and freeing as much memory as it needs."""
    bytearray(4 * num_bytes)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - begin_cpu


def _append(seconds: tuple[float, float], wall: list[float], cpu: list[float]) -> None:
    wall.append(seconds[0])
    cpu.append(seconds[1])


def agreement(steps: int = 2000) -> float:
    """CPU microseconds of posting and reading a step's report with its reasons to stop."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from mmsa.training.step_reports import StepReports, StepResult

    reports = StepReports(
        Accelerator(cpu=True, mixed_precision="bf16"), ["SIGTERM", "run.max_time"]
    )
    loss, nonfinite = torch.ones(()), torch.zeros((), dtype=torch.bool)
    begin = time.process_time()
    for step in range(steps):
        reports.post(step, StepResult(loss, loss, nonfinite, []), {}, stop=[])
        reports.collect(everything=False)
    seconds = time.process_time() - begin
    AcceleratorState._reset_state(reset_partial_state=True)  # the next part has its own precision
    return 1e6 * seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", help="packed data (default: a synthetic set)")
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--no-stall", action="store_true", help="leave out the checkpoint")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    facts = results.hardware()
    helps = {" ".join(one): command_of([sys.executable, *one, "--help"]).cpu_s for one in COMMANDS}
    content: dict[str, Any] = {"hardware": facts, "help_cpu_s": helps}
    with real_run.packed(options.shards) as shards:
        launched = launches(options.world, shards)
        content["launches"] = {name: ended._asdict() for name, ended in launched.items()}
        content |= {"agreement_us": agreement(), "validation_ms": validation(shards)}
        if not options.no_stall:
            content["stall"] = stall(shards)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = [[f"`{name} --help`", f"{spent:.2f} s of CPU"] for name, spent in helps.items()]
    for name, ended in launched.items():
        launch = f"{options.world} processes of the demo, {name}, wall time; CPU time in all"
        rows.append([launch, f"{ended.start_s:.1f} s; {ended.cpu_s:.1f} s"])
    parts = dict(content["validation_ms"])
    samples = parts.pop("samples")
    told = ", ".join(f"{name} {figure:.1f}" for name, figure in parts.items())
    rows.append([f"a validation of {samples} samples, tiny model, ms", told])
    rows.append(["agreement on a stop, of one rank", f"{content['agreement_us']:.0f} us"])
    if "stall" in content:
        told = content["stall"]
        of_save = f"{told['save_ms']:.0f}; {told['save_cpu_ms']:.0f}"
        of_plain = f"{told['plain_ms']:.0f}; {told['plain_cpu_ms']:.0f}"
        rows.append([f"a checkpoint of {told['mb']:.0f} MB, ms, wall; CPU", of_save])
        rows.append(["a plain write and flush of it, ms, wall; CPU", of_plain])
        of_bare = f"{told['bare_ms']:.0f}; {told['bare_cpu_ms']:.0f}"
        rows.append(["the checkpoint without digests, ms, wall; CPU", of_bare])
        rows.append(["a checkpoint relative to it (median of rounds)", f"{told['times']:.2f}"])
    print(results.markdown(["", "measured"], rows))
    for name, ended in launched.items():
        print(f"{name}: {ended.line}")
    results.write_json(options.json, content)


if __name__ == "__main__":
    main()
