"""Fine-tune a text encoder and an image encoder together on packed shards.

    accelerate launch --config_file accelerate_config.yaml --num_processes 4 train.py \\
        --config launch/runs/full_finetune.yaml data.shards=OUT_DIR run.dir=runs/first
    python train.py --config launch/runs/demo.yaml data.shards=OUT_DIR run.dir=runs/demo

The same command on an existing run directory goes on with that run; a finished run says so.
Settings: defaults < --config FILE < section.key=value. What they mean: docs/configuration.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsa.config import Config, load_config
from mmsa.errors import EXIT_PREEMPTED, AgreedError
from mmsa.extensions import add_import_option, import_extensions
from mmsa.process import runtime
from mmsa.process.command import Command, leave, run_command
from mmsa.process.stop_request import StopRequest

if TYPE_CHECKING:
    from torch import Tensor

    from mmsa.training.run import Run
    from mmsa.training.step_reports import StepReport
    from mmsa.training.tracking import Tracker

MOST_SKIPPED_IN_A_ROW = 50  # steps that are not finite: the run would only spend its time


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code (mmsa/process/command.py)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; see launch/runs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    add_import_option(parser)
    arguments = parser.parse_args(argv)
    runtime.prepare_process()
    return run_command(lambda command: train(command, arguments))


def train(command: Command, arguments: argparse.Namespace) -> None:
    """The story: settings, data, model, loop, checkpoints."""
    from mmsa.process.start_clock import StartClock

    start = StartClock()  # before torch is imported
    from mmsa.engines import engine
    from mmsa.engines.single_process_warning import warn_if_single_process
    from mmsa.training.checkpoints import resume
    from mmsa.training.checkpoints.run_lock import lock_run
    from mmsa.training.setup import prepare_run, training_checks

    import_extensions(arguments.imports)
    start.mark("imports")

    # Settings. Everything that can be known beforehand is checked before the first collective.
    config = load_config(arguments.config, arguments.overrides, checks=training_checks())
    run_dir = Path(str(config.run.dir))
    earlier = resume.earlier_config(run_dir)
    if earlier is None:
        resume.check_run_dir(run_dir)
    else:
        resume.check_same_run(
            run_dir,
            earlier,
            config,
            precision=engine.precision_of_launch(config.train.mixed_precision, command.world),
            shards_digest=resume.digest_of(config),
        )
        if resume.is_finished(run_dir):
            if command.world.is_main_process:
                print(f"{run_dir} is finished; evaluate it with: python evaluate.py {run_dir}")
            return
    if command.world.is_main_process:
        command.resources.enter_context(lock_run(run_dir))  # before anything is written there
    command.report_to(run_dir / resume.STATUS_NAME, goes_on=earlier is not None)
    stop = command.hear_stops(config.run)
    runtime.set_up_logging(command.world, run_dir / "log.txt")
    engine.check_launch(config.launch, command.world)
    engine.check_device(config, command.world)

    if config.run.deterministic:
        runtime.make_deterministic()

    # Data, tokenizer, model; loader workers start here, before the device is touched.
    start.mark("settings")
    run = prepare_run(config, run_dir, command.world, start.mark)
    accelerator = engine.make_accelerator(
        config.train.mixed_precision,
        run.plan,
        clip_norm=config.optim.clip_norm,
        timeout_s=config.run.collective_timeout_s,
    )
    command.accelerator = accelerator
    start.mark("process group")
    run.to_device(accelerator)
    start.mark("engine")
    if accelerator.is_main_process and earlier is None:
        (run_dir / resume.CONFIG_NAME).write_text(config.to_yaml(), encoding="utf-8")
    run.log_facts(engine.launch_facts(accelerator))
    command.tell_what_was_lost(run.progress.step)
    if config.launch.world_size == "any":
        warn_if_single_process(command.world)
    run.train_batches = start.first_of(run.train_batches)
    run_steps(command, config, run, stop)


def run_steps(command: Command, config: Config, run: Run, stop: StopRequest) -> None:
    """The loop over optimizer steps, from where the run stands to its end or to a stop."""
    from mmsa.training.checkpoints.checkpoint import last_save_s
    from mmsa.training.due import is_due, owes_validation
    from mmsa.training.optim import lr_scale, seed_step, set_learning_rates
    from mmsa.training.step_reports import StepReport, StepReports
    from mmsa.training.tracking import Tracker

    accelerator, progress = run.accelerator, run.progress
    tracker = Tracker(
        run.run_dir,
        start_step=progress.step,
        num_steps=run.num_steps,
        enabled=accelerator.is_main_process,
        samples_per_step=run.plan.global_batch_size,
        config=config,
    )
    exchange = StepReports(accelerator, stop.reasons)
    stopped: list[str] = []
    command.step = progress.step
    if accelerator.is_main_process:
        command.write_status("running", **tracker.latest)
    run.model.train()
    stop.begin_loop(
        save_s=last_save_s(run.run_dir),
        grace_s=runtime.launcher_grace_s() if command.world.launched else None,
    )
    if owes_validation(config, run):
        validate(run, tracker, stop)
    run.profile.begin_loop()
    while progress.step < run.num_steps and not progress.stopped_early and not stopped:
        scale = lr_scale(progress.step, run.num_steps, config.optim)
        rates = set_learning_rates(run.optimizer, scale)
        seed_step(config.run.seed, progress.step, accelerator.process_index)
        loss, grad_norm, nonfinite, keys = train_step(config, run)
        progress.step += 1
        command.step = step = progress.step
        tracker.advance()
        # The ranks tell each other how the step went, and read it one step later.
        report = StepReport(step, keys, rates)
        exchange.post(
            report, loss=loss, grad_norm=grad_norm, nonfinite=nonfinite, stop=stop.heard()
        )
        validation_due = is_due(step, config.train.validate_every_steps, run)
        checkpoint_due = is_due(step, config.train.checkpoint_every_steps, run)
        for report in exchange.collect(everything=validation_due or checkpoint_due):
            note(report, command, config, run, tracker)
            stopped = stopped or report.stop
        if stopped:
            break
        if validation_due:
            validate(run, tracker, stop)
        if checkpoint_due or progress.stopped_early:
            save(run, stop)
        run.profile.end_step()
    if stopped:
        save(run, stop)
    run.profile.close()
    end(command, config, run, tracker, stopped)


def note(report: StepReport, command: Command, config: Config, run: Run, tracker: Tracker) -> None:
    """Log a step's measures, where they are due; raise or log where they are not finite.

    All ranks hold the same report. What was not finite has not reached the weights.
    """
    from accelerate.utils import gather_object

    from mmsa.training.nonfinite_guard import nonfinite_in_words

    step = report.step
    if report.nonfinite:
        keys = sorted(gather_object(report.keys))
        in_a_row = tracker.skipped(step, loss=report.loss, grad_norm=report.grad_norm, keys=keys)
        if config.train.on_nonfinite == "stop" or in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise AgreedError(nonfinite_in_words(report, keys, in_a_row, run.newest_checkpoint()))
    elif step % config.run.log_every_steps == 0 or step == run.num_steps:
        tracker.train(
            step,
            loss=report.loss,
            rates=report.rates,
            grad_norm=report.grad_norm,
            ended=report.ended,
        )
        if run.accelerator.is_main_process:
            command.write_status("running", **tracker.latest)


def validate(run: Run, tracker: Tracker, stop: StopRequest) -> None:
    """Validate, and keep the model if it is the best so far."""
    from mmsa.evaluation.scores.metrics import flat_metrics

    step = run.progress.step
    with stop.paused(), run.profile.part("validation"):
        metrics = run.validate()
        tracker.validation(step, step / run.plan.steps_per_epoch, flat_metrics(metrics))
        run.keep_if_best(metrics)


def save(run: Run, stop: StopRequest) -> None:
    """Write a checkpoint of this step."""
    with stop.paused(saving=True), run.profile.part("checkpoint"):
        run.save_checkpoint()


def end(command: Command, config: Config, run: Run, tracker: Tracker, stopped: list[str]) -> None:
    """Say how the loop ended: `done`, or `preempted` by what is in `stopped`."""
    progress, reason = run.progress, ""
    tracker.close()
    if stopped:
        reason = f"{' and '.join(stopped)} after step {progress.step}"
        runtime.logger.info(
            "stopped by %s: its checkpoint is written, the same command goes on from there", reason
        )
        command.exit_code = EXIT_PREEMPTED
    else:
        if progress.stopped_early:
            reason = f"no better {config.train.select_by} in {config.train.patience} validations"
        runtime.logger.info(
            "done after step %d%s; best %s %.4f at step %s: %s",
            progress.step,
            f" ({reason})" if reason else "",
            config.train.select_by,
            abs(progress.best_value or 0.0),
            progress.best_step,
            run.run_dir / "best",
        )
    if run.accelerator.is_main_process:
        state = "preempted" if stopped else "done"
        command.write_status(state, reason, command.exit_code, **tracker.latest)


def train_step(config: Config, run: Run) -> tuple[Tensor, Tensor | float, Tensor, list[str]]:
    """One optimizer step over this rank's share of a global batch.

    Returns this rank's part of the mean loss (scalar; the ranks' parts add up), the norm of the
    whole gradient before clipping, whether either is not finite (scalar), and the samples' keys.
    """
    import torch

    from mmsa.engines import engine
    from mmsa.evaluation.predict import to_device
    from mmsa.models.batchnorm import frozen_statistics
    from mmsa.models.model import per_sample_loss

    accelerator, plan, model, part = run.accelerator, run.plan, run.model, run.profile.part
    _, start, stop = plan.locate(run.progress.step)
    step_loss = torch.zeros((), device=accelerator.device)
    scale = plan.world_size * plan.accumulation_steps
    run.guard.begin_step()
    consumed: list[str] = []
    for _ in range(plan.accumulation_steps):
        with part("data"):
            batch = to_device(next(run.train_batches), accelerator.device)
        # Rows of weight 0, or a single one, must not reach a BatchNorm in training mode.
        too_few = batch["num_real"] < min(2, plan.micro_batch_size)
        with accelerator.accumulate(model), frozen_statistics(run.bare_model, too_few):
            with part("forward"):
                logits = model(batch["input_ids"], batch["attention_mask"], batch["images"])
                losses = per_sample_loss(
                    logits.float(),  # (B, C)
                    batch["labels"] if batch["targets"] is None else batch["targets"],
                    loss=config.model.loss,
                    class_weights=run.class_weights,
                    label_smoothing=config.model.label_smoothing,
                )  # (B,)
                loss = (losses * batch["weights"]).sum() / (stop - start)
            # The ranks' gradients are averaged and Accelerate divides by the accumulation; both
            # are undone here, so that the step's gradient is that of the global batch's mean.
            # A loss that is not finite makes its gradient so, and with it that of every rank.
            with part("backward"):
                accelerator.backward(loss * torch.where(loss.isfinite(), scale, math.nan))
            with part("optimizer"):
                if accelerator.sync_gradients:
                    grad_norm = engine.clip_gradients(accelerator, model, config.optim.clip_norm)
                    nonfinite = run.guard.judge(grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
        step_loss += loss.detach()
        consumed += batch["keys"][: batch["num_real"]]
    if run.audit is not None:
        run.audit.write(run.progress.step + 1, consumed)
    return step_loss, grad_norm, nonfinite | ~step_loss.isfinite(), consumed


if __name__ == "__main__":
    leave(main())
