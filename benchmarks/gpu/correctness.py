"""Stages: does a run on this machine compute what it must, and end as it must?"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.launches import Launch, losses
from benchmarks.gpu.outcome import NotRun, Outcome

# Of a loss on the device against the CPU's, both strict float32, relative: at the first step only
# the order of additions differs; later steps add what the weights then differ by.
FIRST_STEP, ANY_STEP = 1e-4, 0.02
NO_DROPOUT = (
    "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"  # draws differ by device
)
SIGNALS = ((signal.SIGTERM, "the launcher"), (signal.SIGUSR1, "the ranks"))


def correctness_settings(bench: Bench, run_dir: Path, steps: int) -> list[str]:
    """Settings of a short run: two micro-batches a step, two checkpoints, all random parts on."""
    return [
        *bench.settings(bench.size, run_dir),
        *["train.global_batch_size=16", "train.micro_batch_size=8", f"train.max_steps={steps}"],
        *[f"train.checkpoint_every_steps={steps // 2}", "train.keep_checkpoints=2"],
        *[f"train.validate_every_steps={steps}", "run.log_every_steps=1"],
    ]


def step_losses(bench: Bench, outcome: Outcome) -> None:
    """Losses of 20 steps against one CPU process in float32, under each engine."""
    steps = 6 if bench.tiny else 20
    place = bench.out / "losses"
    shutil.rmtree(place, ignore_errors=True)

    def of(name: str, engine: str, precision: str, **environment: str) -> list[float]:
        settings = correctness_settings(bench, place / name, steps)
        text = next(one for one in settings if one.startswith("model.text_encoder.config="))
        settings += [f"{text.rstrip('}')}, {NO_DROPOUT}", "model.fusion.dropout=0.0"]
        settings += [f"train.mixed_precision={precision}", "train.checkpoint_every_steps=1000"]
        bench.train(settings, engine, environment=environment)
        found = losses(place / name)
        shutil.rmtree(place / name)
        return found

    cpu = of("cpu", "single", "no", **({"CUDA_VISIBLE_DEVICES": ""} if bench.on_gpu else {}))
    outcome.figures["cpu"] = cpu
    engines = ["single"] if bench.in_process else ["single", "ddp", "zero1", "zero2", "zero3"]
    for engine in engines:
        with outcome.asking(f"{engine}, float32") as answer:
            found = outcome.figures[engine] = of(engine, engine, "no")
            apart = [abs(one / other - 1) for one, other in zip(found, cpu, strict=True)]
            answer(
                apart[0] <= FIRST_STEP and max(apart) <= ANY_STEP,
                f"{apart[0]:.1e} from the CPU's at step 1, {max(apart):.1e} at most in {steps}",
            )
    with outcome.asking("bf16") as answer:
        found = outcome.figures["bf16"] = of("bf16", "single", "bf16")
        means = sum(found) / sum(cpu) - 1
        answer(abs(means) <= 0.05, f"mean loss {means:+.2%} against the CPU's float32")


def resume(bench: Bench, outcome: Outcome) -> None:
    """With `run.deterministic`: a run resumed at its half ends with the bytes of a whole one."""
    steps = 6 if bench.tiny else 20
    place = bench.out / "resume"
    shutil.rmtree(place, ignore_errors=True)
    for engine in ["single"] if bench.in_process else ["ddp", "zero2", "zero3"]:
        with outcome.asking(engine) as answer:
            whole, again = place / f"{engine}-whole", place / f"{engine}-again"
            settings = [*correctness_settings(bench, whole, steps), "run.deterministic=true"]
            bench.train(settings, engine)
            shutil.copytree(whole, again, symlinks=True)
            shutil.rmtree(again / "checkpoints" / f"step-{steps:08d}")
            (again / "status.json").unlink()
            bench.train([*settings, f"run.dir={again}"], engine)
            differing = differing_files(whole, again, steps)
            answer(
                not differing, f"{', '.join(differing) or 'no file'} differs after {steps} steps"
            )
            shutil.rmtree(whole)
            shutil.rmtree(again)


def differing_files(one: Path, other: Path, step: int) -> list[str]:
    """The files of numbers in which the checkpoints of two runs differ."""
    name = f"checkpoints/step-{step:08d}"
    files = [file.relative_to(one) for file in sorted((one / name).rglob("*.safetensors"))]
    assert files, f"{one / name} has no weights"
    return [file.name for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def endings(bench: Bench, outcome: Outcome) -> None:
    """SIGTERM, SIGUSR1 and kill -9, one after the other on one run; then it must be as if nothing
    had been."""
    if bench.in_process:
        raise NotRun("needs a launcher")
    steps = 60 if bench.tiny else 400
    place = bench.out / "endings"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    stopped, never = place / "stopped", place / "never"
    more = ["run.deterministic=true", "train.checkpoint_every_steps=20", "data.num_workers=1"]
    more += [f"train.validate_every_steps={steps}"]
    settings = [*correctness_settings(bench, stopped, steps), *more]
    for number, to in SIGNALS:
        with outcome.asking(f"{number.name} to {to}") as answer:
            answer(*_after_signal(bench, stopped, settings, number, to))
    for victim in ("a rank", "everything"):
        with outcome.asking(f"kill -9 of {victim}") as answer:
            answer(*_after_kill(bench, stopped, settings, victim))
    with outcome.asking("the same bytes in the end") as answer:
        bench.train(settings)
        bench.train([*settings, f"run.dir={never}"])
        differing = differing_files(never, stopped, steps)
        answer(not differing, f"{', '.join(differing) or 'no file'} differs after {steps} steps")
    shutil.rmtree(place)


def _after_signal(
    bench: Bench, run_dir: Path, settings: list[str], number: signal.Signals, to: str
) -> tuple[bool, str]:
    launch = Launch(bench, run_dir, settings)
    launch.wait_for_steps()
    for process in launch.ranks() if to == "the ranks" else [launch.process]:
        process.send_signal(number)
    launch.wait()
    told = launch.status()
    right = (told["state"], told["exit_code"]) == ("preempted", 75)
    right = right and told["reason"].startswith(number.name)
    return right, f"{told['state']}, {told['reason']}"


def _after_kill(bench: Bench, run_dir: Path, settings: list[str], victim: str) -> tuple[bool, str]:
    """Whether the launch resumed where it had to, and ended with all its processes."""
    from mmsa.checkpoint_folders import step_of, whole_checkpoints

    before = [step_of(one) for one in whole_checkpoints(run_dir)]
    launch = Launch(bench, run_dir, settings)
    launch.wait_for_steps()
    resumed = f"at step {before[0]}" in (run_dir / "log.txt").read_text()
    if victim == "everything":
        launch.kill()
        return resumed, f"resumed at step {before[0]}; state {launch.status()['state']}"
    launch.ranks()[0].kill()
    code = launch.wait()
    return resumed and code != 0, f"resumed at step {before[0]}; the launcher ended with {code}"


def processes(bench: Bench, outcome: Outcome) -> None:
    """One CUDA context for each rank and none for its loaders; a killed loader is named."""
    if bench.in_process:
        raise NotRun("needs a launcher")
    run_dir = bench.out / "processes"
    shutil.rmtree(run_dir, ignore_errors=True)
    settings = [*correctness_settings(bench, run_dir, 100_000), "data.num_workers=2"]
    launch = Launch(bench, run_dir, [*settings, "train.epochs=100000"])
    try:
        launch.wait_for_steps()
        ranks, workers = launch.ranks(), launch.loader_workers()
        with outcome.asking("one context a rank") as answer:
            bench.need_gpu("a CUDA context")
            found = sorted(launch.with_context())
            right = found == sorted(one.pid for one in ranks)
            answer(right, f"{len(found)} process(es) with a context, {len(ranks)} rank(s)")
        with outcome.asking("a killed loader process") as answer:
            victim = workers[0].pid
            workers[0].kill()
            code, told = launch.wait(), launch.status()
            named = told["state"] == "failed" and str(victim) in told["reason"]
            answer(code != 0 and named, f"{told['state']}: {told['reason']}")
    finally:
        launch.kill()
    shutil.rmtree(run_dir)


def device_settings(bench: Bench) -> list[str]:
    """Of a step as it is trained, for the stages that look inside a process."""
    micro = 8 if bench.tiny else 64
    return [
        *bench.settings(bench.size, "to be given"),
        *[f"train.global_batch_size={2 * micro}", f"train.micro_batch_size={micro}"],
        f"data.num_workers={0 if bench.tiny else 2}",
    ]


def streams(bench: Bench, outcome: Outcome) -> None:
    """Batches and reports by their own streams against those without, while the GPU is busy."""
    number = 3 if bench.tiny else 24
    found = bench.child("streams", settings=device_settings(bench), number=number)
    with outcome.asking("batches copied ahead") as answer:
        bench.need_gpu("a stream")
        answer(
            found["same"] == found["of"], f"{found['same']} of {found['of']} have the same bytes"
        )
    with outcome.asking("reports of steps") as answer:
        bench.need_gpu("a stream")
        answer(found["wrong_reports"] == 0, f"{found['wrong_reports']} of {number} are wrong")
    outcome.figures = found


def syncs(bench: Bench, outcome: Outcome) -> None:
    """No step waits for the device; torch's sync debug mode says where one does."""
    steps = 2 if bench.tiny else 10
    for engine, mode in (("ddp", "error"), ("zero2", "warn"), ("zero3", "warn")):
        if bench.in_process and engine != "ddp":
            continue
        with outcome.asking(engine) as answer:
            asked: dict[str, Any] = {"settings": device_settings(bench), "warm": steps}
            found = bench.child("syncs", engine, mode=mode, steps=steps, **asked)
            outcome.figures[engine] = found
            bench.need_gpu("torch's sync debug mode")
            said = "; ".join(f"{place} ({times})" for place, times in found["places"].items())
            if mode == "warn":  # DeepSpeed waits by itself: docs/gpu.md
                outcome.measured(engine, f"in {steps} steps: {said or 'none'}")
            else:
                answer(not said, said or f"none in {steps} steps")


def memory(bench: Bench, outcome: Outcome) -> None:
    """The memory of a device does not grow in 200 steps."""
    early, late = (4, 12) if bench.tiny else (30, 200)
    found = bench.child("memory", settings=device_settings(bench), early=early, late=late)
    outcome.figures = found
    before, after = found["host"]
    outcome.measured("host", f"{after - before:+.1f} MiB from step {early} to step {late}")
    with outcome.asking("device") as answer:
        bench.need_gpu("a device's memory")
        before, after = found["device"]
        growth = after - before
        answer(growth <= 1 + 0.01 * before, f"{growth:+.1f} of {before:.0f} MiB to step {late}")
