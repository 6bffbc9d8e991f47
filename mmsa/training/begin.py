"""The first thing a training command does: may it train in this directory, and with this launch?

Everything here reads files and the launch alone. Every rank finds the same problem before the first
collective, and the main rank reports it.
"""

from __future__ import annotations

from pathlib import Path

from mmsa.config import Config
from mmsa.engines import engine
from mmsa.process import runtime
from mmsa.process.command import Command
from mmsa.process.status import STATUS_NAME
from mmsa.training.checkpoints import resume
from mmsa.training.checkpoints.run_lock import lock_run


def begin_run(command: Command, config: Config) -> bool:
    """Claim the run directory of `config` for this launch; False where its run is finished.

    In this order: check that the directory holds no other run, lock it (main rank), report to its
    `status.json`, listen for stop signals, log to its `log.txt`, check the launch and the device.
    Raises `UserError`.
    """
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
            return False
    if command.world.is_main_process:
        command.resources.enter_context(lock_run(run_dir))  # before anything is written there
    command.report_to(run_dir / STATUS_NAME, resumes=earlier is not None)
    command.listen_for_stops(config.run)
    runtime.set_up_logging(command.world, run_dir / "log.txt")
    engine.check_launch(config.launch, command.world)
    engine.check_device(config, command.world)
    if config.run.deterministic:
        runtime.make_deterministic()
    return True
