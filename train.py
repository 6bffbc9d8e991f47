"""Fine-tune a text encoder and an image encoder together on packed shards.

    accelerate launch --config_file accelerate_config.yaml --num_processes 4 train.py \\
        --config launch/runs/full_finetune.yaml data.shards=OUT_DIR run.dir=runs/first
    python train.py --config launch/runs/demo.yaml data.shards=OUT_DIR run.dir=runs/demo

The same command on an existing run directory goes on with that run; a finished run says so.
Settings: defaults < --config FILE < section.key=value. What they mean: docs/configuration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa import runtime
from mmsa.config import Config, load_config
from mmsa.errors import UserError

if TYPE_CHECKING:
    from mmsa.data.plan import BatchPlan
    from mmsa.training.setup import Setup


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
    from mmsa.training import resume
    from mmsa.training.setup import prepare_run, training_checks

    # Settings. Everything that can be known beforehand is checked before the first collective.
    config = load_config(arguments.config, arguments.overrides, checks=training_checks())
    run_dir = Path(str(config.run.dir))
    earlier = resume.earlier_config(run_dir)
    if earlier is not None:
        resume.check_same_run(run_dir, earlier, config)
        if resume.is_finished(run_dir):
            print(f"{run_dir} is finished; evaluate it with: python evaluate.py {run_dir}")
            return
    command.status_file = run_dir / resume.STATUS_NAME
    runtime.check_launch(config.launch, command.world)
    runtime.set_up_logging(command.world, run_dir / "log.txt")

    # Data, tokenizer, model; loader workers start here, before the device is touched.
    setup = prepare_run(config, run_dir, command.world)
    accelerator = runtime.make_accelerator(
        config.train.mixed_precision, setup.plan.accumulation_steps
    )
    command.accelerator = accelerator
    setup.to_device(accelerator)
    if accelerator.is_main_process and earlier is None:
        (run_dir / resume.CONFIG_NAME).write_text(config.to_yaml(), encoding="utf-8")
    setup.log_facts(runtime.launch_facts(accelerator))
    run_steps(command, config, setup)


def run_steps(command: runtime.Command, config: Config, setup: Setup) -> None:
    """The loop over optimizer steps, from where the run stands to its end."""
    import torch

    from mmsa.evaluation.predict import to_device
    from mmsa.models.model import per_sample_loss
    from mmsa.training.batchnorm import frozen_statistics
    from mmsa.training.optim import lr_scale, set_learning_rates
    from mmsa.training.tracking import Tracker

    accelerator, plan, progress = setup.accelerator, setup.plan, setup.progress
    model, optimizer = setup.model, setup.optimizer
    tracker = Tracker(
        setup.run_dir,
        start_step=progress.step,
        num_steps=setup.num_steps,
        enabled=accelerator.is_main_process,
        samples_per_step=plan.global_batch_size,
    )
    if accelerator.is_main_process:
        command.step = progress.step
        command.write_status("running")
    model.train()
    while progress.step < setup.num_steps and not progress.stopped_early:
        step = progress.step
        _, start, stop = plan.locate(step)
        rates = set_learning_rates(optimizer, lr_scale(step, setup.num_steps, config.optim))
        runtime.seed_step(config.run.seed, step, accelerator.process_index)
        step_loss = torch.zeros((), device=accelerator.device)
        grad_norm: Any = 0.0
        for _ in range(plan.accumulation_steps):
            batch = to_device(next(setup.train_batches), accelerator.device)
            too_few = batch["num_real"] < min(2, plan.micro_batch_size)
            with accelerator.accumulate(model), frozen_statistics(setup.bare_model, too_few):
                logits = model(batch["input_ids"], batch["attention_mask"], batch["images"])
                losses = per_sample_loss(
                    logits.float(),
                    batch["labels"],
                    loss=config.model.loss,
                    class_weights=setup.class_weights,
                    label_smoothing=config.model.label_smoothing,
                )  # (B,)
                loss = (losses * batch["weights"]).sum() / (stop - start)
                # The ranks' gradients are averaged and Accelerate divides by the accumulation;
                # both are undone here, so that the step's gradient is that of the global batch.
                accelerator.backward(loss * (plan.world_size * plan.accumulation_steps))
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(
                        model.parameters(), config.optim.clip_norm or float("inf")
                    )
                optimizer.step()
                optimizer.zero_grad()
            step_loss += loss.detach()
        progress.step = step = step + 1
        command.step = step
        tracker.advance()
        if step % config.run.log_every_steps == 0 or step == setup.num_steps:
            mean_loss = float(accelerator.reduce(step_loss, reduction="sum"))
            if not torch.isfinite(torch.tensor(mean_loss)):
                raise UserError(
                    f"the loss is {mean_loss} at step {step}; lower the learning rates "
                    f"(optim.*_lr) or optim.clip_norm, and start with another run.dir"
                )
            tracker.train(step, loss=mean_loss, rates=rates, grad_norm=float(grad_norm))
        if is_due(step, config.train.validate_every_steps, plan, setup.num_steps):
            metrics = setup.validate()
            tracker.validation(step, step / plan.steps_per_epoch, metrics)
            setup.keep_if_best(metrics)
        if (
            is_due(step, config.train.checkpoint_every_steps, plan, setup.num_steps)
            or progress.stopped_early
        ):
            setup.save_checkpoint()
    tracker.close()
    if accelerator.is_main_process:
        why = f"no better {config.train.select_by} in {config.train.patience} validations"
        command.write_status("done", why if progress.stopped_early else "", 0)
    runtime.logger.info(
        "done after step %d; best %s %.4f at step %s: %s",
        progress.step,
        config.train.select_by,
        abs(progress.best_value),
        progress.best_step,
        setup.run_dir / "best",
    )


def is_due(step: int, every: int | None, plan: BatchPlan, num_steps: int) -> bool:
    """Whether a thing is due after `step`: every so many (None: each epoch), and at the end."""
    return step % (every or plan.steps_per_epoch) == 0 or step == num_steps


if __name__ == "__main__":
    sys.exit(main())
