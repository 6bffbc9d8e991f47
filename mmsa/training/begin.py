"""The first thing a training command does: may it train in this directory, and with this launch?

Everything here reads files and the launch alone. Every rank finds the same problem before the first
collective, and the main rank reports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmsa.checkpoint_folders import checkpoint_directories
from mmsa.config import Config
from mmsa.data.shard_cache import use_cache_of
from mmsa.engines import engine
from mmsa.engines.hardware import device_type
from mmsa.process import runtime
from mmsa.process.command import Command
from mmsa.process.status import STATUS_NAME
from mmsa.training.checkpoints import resume
from mmsa.training.checkpoints.intact import Choice, choose_checkpoint
from mmsa.training.checkpoints.run_config import resumes
from mmsa.training.checkpoints.run_lock import lock_run


@dataclass(frozen=True)
class Beginning:
    """What `begin_run` found: the checkpoint that the run resumes from, None for a new run."""

    checkpoint: Path | None


def begin_run(command: Command, config: Config) -> Beginning | None:
    """Claim the run directory of `config` for this launch; None where its run is finished.

    In this order: find the newest intact checkpoint, check that the directory holds no other run,
    lock it (main rank), report to its `status.json`, listen for stop signals, log to its `log.txt`,
    check the launch and the device. Raises `UserError`.
    """
    run_dir = Path(str(config.run.dir))
    use_cache_of(config.data, run_dir)
    choice = choose_checkpoint(run_dir)
    continues = resumes(
        choice,
        config,
        precision=lambda: engine.precision_of_launch(config.train.mixed_precision, command.world),
        shards_digest=lambda: resume.digest_of(config),
    )
    if continues and resume.is_finished(run_dir):
        if command.world.is_main_process:
            print(resume.finished_in_words(run_dir))
        return None
    if command.world.is_main_process:
        command.resources.enter_context(lock_run(run_dir))  # before anything is written there
        choice = _after_the_lock(choice)
    command.report_to(run_dir / STATUS_NAME, resumes=continues)
    command.listen_for_stops(config.run)
    runtime.set_up_logging(command.world, run_dir / "log.txt")
    choice.require()
    if command.world.is_main_process:
        choice.warn()
        choice.set_aside()
    engine.check_launch(config.launch, command.world)
    engine.check_device(config, command.world)
    if device_type() == "cuda" and command.world.world_size > 1:
        runtime.record_collectives(command.world, run_dir)
    if config.run.deterministic:
        runtime.make_deterministic()
    return Beginning(choice.checkpoint)


def _after_the_lock(choice: Choice) -> Choice:
    """The choice again if the launch that held the lock before has written a checkpoint since."""
    seen = {damaged.checkpoint for damaged in choice.damaged} | {choice.checkpoint}
    newest = checkpoint_directories(choice.run_dir)[:1]
    return choice if seen.issuperset(newest) else choose_checkpoint(choice.run_dir)
