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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsa import runtime
from mmsa.config import Config, load_config
from mmsa.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mmsa.training.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code (0, or 2 for a user's error)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; see launch/runs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    runtime.prepare_process()
    return runtime.run_command(lambda command: train(command, arguments))


def train(command: runtime.Command, arguments: argparse.Namespace) -> None:
    """The story: settings, data, model, loop, checkpoints."""
    from mmsa import engine
    from mmsa.training import resume
    from mmsa.training.setup import prepare_run, training_checks

    # Settings. Everything that can be known beforehand is checked before the first collective.
    config = load_config(arguments.config, arguments.overrides, checks=training_checks())
    run_dir = Path(str(config.run.dir))
    earlier = resume.earlier_config(run_dir)
    if earlier is None:
        resume.check_run_dir(run_dir)
    else:
        resume.check_same_run(run_dir, earlier, config)
        if resume.is_finished(run_dir):
            if command.world.is_main_process:
                print(f"{run_dir} is finished; evaluate it with: python evaluate.py {run_dir}")
            return
    runtime.set_up_logging(command.world, run_dir / "log.txt")
    command.status_file = run_dir / resume.STATUS_NAME
    engine.check_launch(config.launch, command.world)
    engine.check_device(config, command.world)

    if config.run.deterministic:
        runtime.make_deterministic()

    # Data, tokenizer, model; loader workers start here, before the device is touched.
    run = prepare_run(config, run_dir, command.world)
    accelerator = engine.make_accelerator(
        config.train.mixed_precision, run.plan, clip_norm=config.optim.clip_norm
    )
    command.accelerator = accelerator
    run.to_device(accelerator)
    if accelerator.is_main_process and earlier is None:
        (run_dir / resume.CONFIG_NAME).write_text(config.to_yaml(), encoding="utf-8")
    run.log_facts(engine.launch_facts(accelerator))
    if config.launch.world_size == "any":
        engine.warn_if_lonely(command.world)
    run_steps(command, config, run)


def run_steps(command: runtime.Command, config: Config, run: Run) -> None:
    """The loop over optimizer steps, from where the run stands to its end."""
    from mmsa.evaluation.metrics import flat_metrics
    from mmsa.training.optim import lr_scale, set_learning_rates
    from mmsa.training.tracking import Tracker

    accelerator, progress = run.accelerator, run.progress
    tracker = Tracker(
        run.run_dir,
        start_step=progress.step,
        num_steps=run.num_steps,
        enabled=accelerator.is_main_process,
        samples_per_step=run.plan.global_batch_size,
    )
    if accelerator.is_main_process:
        command.step = progress.step
        command.write_status("running")
    run.model.train()
    while progress.step < run.num_steps and not progress.stopped_early:
        scale = lr_scale(progress.step, run.num_steps, config.optim)
        rates = set_learning_rates(run.optimizer, scale)
        runtime.seed_step(config.run.seed, progress.step, accelerator.process_index)
        step_loss, grad_norm = train_step(config, run)
        progress.step += 1
        command.step = step = progress.step
        tracker.advance()
        if step % config.run.log_every_steps == 0 or step == run.num_steps:
            mean_loss = float(accelerator.reduce(step_loss, reduction="sum"))
            if not math.isfinite(mean_loss):
                raise UserError(
                    f"the loss is {mean_loss} at step {step}; lower the learning rates "
                    "(optim.*_lr) or optim.clip_norm, and start with another run.dir"
                )
            tracker.train(step, loss=mean_loss, rates=rates, grad_norm=float(grad_norm))
            if accelerator.is_main_process:
                command.write_status("running")
        if is_due(step, config.train.validate_every_steps, run):
            metrics = run.validate()
            tracker.validation(step, step / run.plan.steps_per_epoch, flat_metrics(metrics))
            run.keep_if_best(metrics)
        if is_due(step, config.train.checkpoint_every_steps, run) or progress.stopped_early:
            run.save_checkpoint()
    tracker.close()
    reason = ""
    if progress.stopped_early:
        reason = f"no better {config.train.select_by} in {config.train.patience} validations"
    if accelerator.is_main_process:
        command.write_status("done", reason, 0)
    runtime.logger.info(
        "done after step %d%s; best %s %.4f at step %s: %s",
        progress.step,
        f" ({reason})" if reason else "",
        config.train.select_by,
        abs(progress.best_value or 0.0),
        progress.best_step,
        run.run_dir / "best",
    )


def train_step(config: Config, run: Run) -> tuple[Tensor, Tensor | float]:
    """One optimizer step over this rank's share of a global batch.

    Returns this rank's part of the mean loss (scalar; the ranks' parts add up) and the norm of the
    whole gradient before clipping.
    """
    import torch

    from mmsa import engine
    from mmsa.evaluation.predict import to_device
    from mmsa.models.model import per_sample_loss
    from mmsa.training.batchnorm import frozen_statistics

    accelerator, plan, model = run.accelerator, run.plan, run.model
    _, start, stop = plan.locate(run.progress.step)
    step_loss = torch.zeros((), device=accelerator.device)
    grad_norm: Tensor | float = 0.0
    consumed: list[str] = []
    for _ in range(plan.accumulation_steps):
        batch = to_device(next(run.train_batches), accelerator.device)
        # Rows of weight 0, or a single one, must not reach a BatchNorm in training mode.
        too_few = batch["num_real"] < min(2, plan.micro_batch_size)
        with accelerator.accumulate(model), frozen_statistics(run.bare_model, too_few):
            logits = model(batch["input_ids"], batch["attention_mask"], batch["images"])  # (B, C)
            losses = per_sample_loss(
                logits.float(),
                batch["labels"] if batch["targets"] is None else batch["targets"],
                loss=config.model.loss,
                class_weights=run.class_weights,
                label_smoothing=config.model.label_smoothing,
            )  # (B,)
            loss = (losses * batch["weights"]).sum() / (stop - start)
            # The ranks' gradients are averaged and Accelerate divides by the accumulation; both
            # are undone here, so that the step's gradient is that of the global batch's mean.
            accelerator.backward(loss * (plan.world_size * plan.accumulation_steps))
            if accelerator.sync_gradients:
                grad_norm = engine.clip_gradients(accelerator, model, config.optim.clip_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        step_loss += loss.detach()
        consumed += batch["keys"][: batch["num_real"]]
    if run.audit is not None:
        run.audit.write(run.progress.step + 1, consumed)
    return step_loss, grad_norm


def is_due(step: int, every: int | None, run: Run) -> bool:
    """Whether a thing is due after `step`: every so many (None: each epoch), and at the end."""
    return step % (every or run.plan.steps_per_epoch) == 0 or step == run.num_steps


if __name__ == "__main__":
    sys.exit(main())
