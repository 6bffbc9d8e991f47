"""A mistake that every rank finds, the main rank two seconds later than the other."""

from __future__ import annotations

import time

from mmsa.errors import UserError
from mmsa.process.command import Command, run_command


def body(command: Command) -> None:
    assert command.world.world_size == 2
    if command.world.is_main_process:
        time.sleep(2)
    raise UserError("a mistake that all ranks find")


if __name__ == "__main__":
    run_command(body)
