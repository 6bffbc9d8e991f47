"""Fine-tune a text encoder and an image encoder together on packed shards.

    python -m launch run -n 4 launch/runs/full_finetune.yaml \\
        data.shards=OUT_DIR run.dir=runs/first
    accelerate launch --config_file accelerate_config.yaml --num_processes 4 \\
        train.py --config launch/runs/full_finetune.yaml \\
        data.shards=OUT_DIR run.dir=runs/first
    python train.py --config launch/runs/demo.yaml \\
        data.shards=OUT_DIR run.dir=runs/demo

The same command on an existing run directory resumes that run; a finished run says so.
Settings: defaults < --config FILE < section.key=value. What they mean: docs/configuration.md.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence

from mmsa.process.arguments import take_configuration, training_parser
from mmsa.process.runtime import logger, prepare_process
from mmsa.process.stop_request import StopRequest, end_at_once_on_ctrl_c

if (
    __name__ == "__main__"
):  # --help and a mistyped option are answered before the slow imports below
    end_at_once_on_ctrl_c()
    prepare_process()
    training_parser(__doc__).parse_intermixed_args()

import torch
from accelerate.utils import gather_object

from mmsa.config import load_config
from mmsa.engines import engine
from mmsa.errors import EXIT_PREEMPTED
from mmsa.evaluation.predict import inputs_of, to_device
from mmsa.evaluation.scores.metrics import flat_metrics
from mmsa.extensions import import_extensions
from mmsa.process.command import Command, leave, run_command
from mmsa.process.start_clock import StartClock
from mmsa.training.begin import begin_run
from mmsa.training.checkpoints.collective_write import wait_for_removals
from mmsa.training.model_for_engine import statistics_for
from mmsa.training.optim import learning_rate_share, seed_step, set_learning_rates
from mmsa.training.run import Run
from mmsa.training.setup import prepare_run, training_checks
from mmsa.training.start_facts import log_start_facts
from mmsa.training.step_reports import StepReport, StepReports, StepResult, add_measures
from mmsa.training.tracking import Tracker


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code (mmsa/process/command.py)."""
    arguments = training_parser(__doc__).parse_intermixed_args(argv)
    prepare_process()
    return run_command(lambda command: train(command, arguments))


def train(command: Command, arguments: argparse.Namespace) -> None:
    """Set up the run, then train: settings, data, model, engine, loop."""
    clock = StartClock("first step", from_process_start=__name__ == "__main__")
    import_extensions(arguments.imports)
    clock.mark("imports")
    # Whatever can be known in advance is checked here, before the first collective.
    file, overrides = take_configuration(arguments.config, arguments.overrides)
    config = load_config(file, overrides, checks=training_checks())
    beginning = begin_run(command, config)
    if beginning is None:
        return
    clock.mark("settings")
    # Data, tokenizer, model. Loader workers start here, before the device is touched.
    prepared = prepare_run(config, command.world, beginning.checkpoint, clock.mark)
    command.accelerator = accelerator = engine.make_accelerator(
        config.train.mixed_precision,
        prepared.data.plan,
        clip_norm=config.optim.clip_norm,
        timeout_s=config.run.collective_timeout_s,
        communication=config.train.communication,
        gpu=config.gpu,
    )
    clock.mark("process group")
    run = Run(prepared, accelerator)  # wrapped by the engine, restored from its checkpoint
    clock.mark("engine")
    log_start_facts(run, command.world)
    command.log_repeated_steps(run.state.step)
    clock.mark("other")
    run_steps(command, run, clock)


def run_steps(command: Command, run: Run, clock: StartClock) -> None:
    """The loop over optimizer steps, from where the run is to its end or to a stop."""
    config, state, accelerator = run.config, run.state, run.accelerator
    tracker = run.make_tracker()
    stop_request = command.stop_request
    reports = StepReports(accelerator, stop_request.reasons, run.bare_model.fusion.measures)
    stop_reasons: list[str] = []
    command.begin_loop(state.step, last_save_s=run.files.stop_takes_s(), **tracker.latest)
    command.to_finish.callback(run.files.close)
    run.model.train()
    if run.owes_validation():  # the run was stopped between a step and its validation
        validate(run, tracker, stop_request)
    run.profile.begin_loop()
    while state.step < run.num_steps and not state.stopped_early and not stop_reasons:
        lr_share = learning_rate_share(state.step, run.num_steps, config.optim)
        rates = set_learning_rates(run.optimizer, lr_share)
        seed_step(config.run.seed, state.step, accelerator.process_index)
        result = train_step(run, clock)
        command.step = state.step = state.step + 1
        tracker.advance()
        run.compile_watch.log_news(state.step)
        validation_due = run.is_due(config.train.validate_every_steps)
        checkpoint_due = run.is_due(config.train.checkpoint_every_steps)
        # Reports are all-reduced in the background and read one step later, so that no rank waits;
        # at once before a validation or a checkpoint, where all ranks wait anyway.
        reports.post(state.step, result, rates, stop=stop_request.heard())
        for report in reports.collect(everything=validation_due or checkpoint_due):
            log_step(report, command, run, tracker)
            stop_reasons = stop_reasons or report.stop
        if stop_reasons:
            break
        if validation_due:
            validate(run, tracker, stop_request)
        if checkpoint_due or state.stopped_early:
            save(run, stop_request)
        run.profile.end_step()
    if stop_reasons:
        save(run, stop_request)
    finish_save(run, stop_request)
    run.profile.close()
    tracker.close()
    end(command, run, tracker, stop_reasons)


def train_step(run: Run, clock: StartClock) -> StepResult:
    """One optimizer step over this rank's share of a global batch."""
    accelerator, plan, model, part = run.accelerator, run.data.plan, run.model, run.profile.part
    _, first, end = plan.locate(run.state.step)  # samples of the epoch's order
    averaging_factor = plan.world_size * plan.accumulation_steps
    step_loss = torch.zeros((), device=accelerator.device)
    keys: list[str] = []
    measures: dict[str, torch.Tensor] = {}  # of the fusion head
    run.guard.begin_step()
    for _ in range(plan.accumulation_steps):
        with part("data"):
            batch = to_device(next(run.loaders.train), accelerator.device)
        clock.first_batch()
        statistics = statistics_for(run.bare_model, run.config, batch, plan, run.state.step)
        with accelerator.accumulate(model), statistics:
            with part("forward"):
                output = model(*inputs_of(batch), auxiliary=run.objective.has_auxiliary)
                losses = run.objective.per_sample(output, batch)  # (B,)
                loss = (losses * batch["weights"]).sum() / (end - first)
            # DDP averages the gradients over ranks; Accelerate divides by the accumulation. This
            # undoes both: the gradient is that of the mean over the global batch. A loss that is
            # not finite becomes a NaN gradient, which the all-reduce spreads to every rank.
            with part("backward"):
                factor = torch.where(loss.isfinite(), averaging_factor, math.nan)
                accelerator.backward(loss * factor)
        step_loss += loss.detach()
        keys += batch["keys"][: batch["num_real"]]
        add_measures(measures, run.bare_model.fusion.told, batch["weights"] / (end - first))
    with part("optimizer"):
        grad_norm = engine.clip_gradients(accelerator, model, run.config.optim.clip_norm)
        skipped = run.guard.skip_if_nonfinite(grad_norm)
        run.optimizer.step()  # does nothing where the guard says skip
        run.optimizer.zero_grad()
        if run.average is not None:
            run.average.update(run.state.step + 1)
    if run.audit is not None:
        run.audit.write(run.state.step + 1, keys)
    return StepResult(step_loss, grad_norm, skipped | ~step_loss.isfinite(), keys, measures)


def log_step(report: StepReport, command: Command, run: Run, tracker: Tracker) -> None:
    """Log a step's metrics if logging is due. All ranks hold the same report."""
    if report.nonfinite:
        keys = sorted(gather_object(report.keys))
        tracker.skipped(report.step, loss=report.loss, grad_norm=report.grad_norm, keys=keys)
        run.guard.count_skipped(report, keys, run.run_dir)
    elif report.step % run.config.run.log_every_steps == 0 or report.step == run.num_steps:
        tracker.train(
            report.step,
            loss=report.loss,
            rates=report.rates,
            grad_norm=report.grad_norm,
            ended=report.ended,
            of_fusion=report.measures,
        )
        if run.accelerator.is_main_process:
            command.write_status("running", **tracker.latest)


def validate(run: Run, tracker: Tracker, stop_request: StopRequest) -> None:
    """Validate, keep the model if it is the best so far, and set `state.stopped_early`."""
    with stop_request.paused(), run.profile.part("validation"):
        metrics = run.validate()
        epoch = run.state.step / run.data.plan.steps_per_epoch
        tracker.validation(run.state.step, epoch, flat_metrics(metrics))
        run.keep_if_best(metrics)


def save(run: Run, stop_request: StopRequest) -> None:
    """Write a checkpoint of this step."""
    in_background = run.files.in_background
    with stop_request.paused(saving=not in_background), run.profile.part("checkpoint"):
        run.save_checkpoint()
    if in_background:
        stop_request.expect_save(run.files.stop_takes_s())


def finish_save(run: Run, stop_request: StopRequest) -> None:
    """Wait for a checkpoint that is still being written in the background."""
    with stop_request.paused():
        run.files.finish_save()


def end(command: Command, run: Run, tracker: Tracker, stop_reasons: list[str]) -> None:
    """Report how the loop ended: `done`, or `preempted` for `stop_reasons`."""
    state, select_by, reason = run.state, run.config.train.select_by, ""
    if stop_reasons:
        reason = f"{' and '.join(stop_reasons)} after step {state.step}"
        logger.info("stopped by %s; checkpoint saved, the same command resumes", reason)
        command.exit_code = EXIT_PREEMPTED
    else:
        if state.stopped_early:
            reason = f"no better {select_by} in {run.config.train.patience} validations"
        logger.info("done after step %d%s", state.step, f" ({reason})" if reason else "")
        # A loss is stored negated: more is better.
        best = (select_by, abs(state.best_value or 0.0), state.best_step, run.run_dir / "best")
        logger.info("best: %s %.4f at step %s, %s", *best)
        named = shlex.quote(str(run.run_dir))
        logger.info("next, once every choice is made: python evaluate.py %s --split test", named)
    if run.accelerator.is_main_process:
        outcome = "preempted" if stop_reasons else "done"
        command.write_status(outcome, reason, command.exit_code, **tracker.latest)
        wait_for_removals()


if __name__ == "__main__":
    leave(main())
