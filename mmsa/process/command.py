"""One command of a launch on this rank: its status, and how it ends.

Every ending is in `status.json`, which scripts read: a launcher turns every exit code into 1.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa import atomic_write
from mmsa.config import RunConfig
from mmsa.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    AgreedError,
    ShardDamage,
    UserError,
)
from mmsa.process.collective_errors import first_line, lost_contact
from mmsa.process.runtime import World, world_from_environment
from mmsa.process.status import read_status
from mmsa.process.stop_request import StoppedInStartUp, StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("mmsa")

_SETTLES_S = 0.5  # how long a failing rank looks after its word in status.json
_FILES_OF_PEERS_S = 3.0  # how long a rank waits for the main rank's word before speaking itself
_END_OF_MAIN_S = 10.0  # and for its end, where there is no file to see its word in


@dataclass
class Command:
    """One command of a launch: where its status goes, and how it ends."""

    world: World
    status_file: Path | None = None  # set as soon as the run directory is known
    step: int = 0
    accelerator: Accelerator | None = None
    exit_code: int = 0  # of an ending without an error
    facts: dict[str, Any] = field(default_factory=dict)  # further content of status.json
    stop: StopRequest | None = None
    resources: ExitStack = field(default_factory=ExitStack)  # closed when the command has ended
    _started: float = field(default_factory=time.time)
    _reached: int = 0  # the step that the launch before came to

    def report_to(self, status_file: Path, *, goes_on: bool) -> None:
        """Report to this file from here on; `goes_on`: the run was begun by an earlier launch."""
        before = read_status(status_file) if goes_on else {}
        earlier, reached = before.get("restarts"), before.get("step")
        self._reached = reached if isinstance(reached, int) else 0
        self.status_file = status_file
        self.facts |= {
            "restarts": 0 if not goes_on else 1 + (earlier if isinstance(earlier, int) else 0),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
        }

    def tell_what_was_lost(self, step: int) -> None:
        """Log how many steps the launch before had made beyond `step`, where this one begins."""
        if self._reached > step:
            logger.info(
                "the launch before had come to step %d: %d step(s) are made again",
                *(self._reached, self._reached - step),
            )

    def hear_stops(self, config: RunConfig) -> StopRequest:
        """Hear the configuration's signals and its time limit until the command has ended."""
        self.stop = self.resources.enter_context(
            StopRequest(
                config.stop_signals,
                max_time_s=config.max_time,
                timeout_s=config.stop_timeout_s,
                world_size=self.world.world_size,
                age_s=time.time() - self._started,
                give_up=self.give_up,
            )
        )
        return self.stop

    def write_status(
        self, state: str, reason: str = "", exit_code: int | None = None, **where: Any
    ) -> None:
        """Write `status.json` aside and rename it; nothing where no run directory is known.

        Host and process are the main rank's, also where another rank writes. A failure keeps what
        this launch has told of itself as it ran: the last validation and the like.
        """
        if self.status_file is None:
            return
        content = {"state": state, "reason": reason, "step": self.step, "exit_code": exit_code}
        before = read_status(self.status_file)
        if not self.world.is_main_process:
            self.facts = {key: before.get(key, value) for key, value in self.facts.items()}
        if state == "failed" and self._of_this_launch():
            content = before | content
        atomic_write.write_status(self.status_file, content | self.facts | where)

    def write_failure(self, error: BaseException, message: str, told: str, code: int) -> None:
        """Tell a failure on standard error, in `log.txt` and in `status.json`.

        The first rank that fails says why: what its peers meet afterwards (a collective that broke
        off) is its consequence, and does not take the place of its word.
        """
        prefix = "" if self.world.is_main_process else f"[rank {self.world.rank}] "
        print(f"{prefix}{told}", file=sys.stderr, flush=True)
        if self.status_file is None:
            return
        with (
            suppress(OSError),
            open(self.status_file.with_name("log.txt"), "a", encoding="utf-8") as log,
        ):
            stamp = logging.Formatter().formatTime(logging.makeLogRecord({}))  # as other lines
            log.write(f"{stamp} {prefix}{told}\n")
        where = {}
        if isinstance(error, ShardDamage):
            where = {"rank": self.world.rank, "shard": error.shard, "key": error.key}
        if self.world.world_size == 1 or not self._peer_failed():
            self.write_status("failed", message, code, **where)
        if not self.world.is_main_process:
            # The main rank may just be writing that it runs; it waits for this rank soon after.
            time.sleep(_SETTLES_S)
            if not self._peer_failed():
                self.write_status("failed", message, code, **where)

    def give_up(self, message: str) -> None:
        """End this process at once, from any thread: the main one does not move."""
        self.write_failure(UserError(message), message, f"error: {message}", 1)
        os._exit(1)

    def _peer_failed(self) -> bool:
        """Whether a rank of this launch has written its failure to `status.json`."""
        assert self.status_file is not None
        return read_status(self.status_file).get("state") == "failed" and self._of_this_launch()

    def _of_this_launch(self) -> bool:
        """Whether `status.json` was written since this launch began."""
        assert self.status_file is not None
        try:
            return self.status_file.stat().st_mtime >= self._started - 1
        except OSError:
            return False

    def main_rank_spoke(self) -> bool:
        """Whether the main rank has reported this failure; waits a little for it."""
        if self.status_file is None:
            # A rank that ended first would have the launcher end the main rank before it has
            # spoken. When that one has, and has ended, the launcher ends this one here.
            time.sleep(_END_OF_MAIN_S)
            return False
        deadline = time.time() + _FILES_OF_PEERS_S
        while time.time() < deadline:
            if self._peer_failed():
                return True
            time.sleep(0.1)
        return False


def run_command(body: Callable[[Command], None]) -> int:
    """Run `body` and return the exit code: 0, 2 after a `UserError`, 1 after a mistake of ours, 75
    after a preemption, 130 after Ctrl-C where that is none.

    What every rank finds alike is told by the main rank once; what one rank meets it tells itself.
    Under a launcher a rank leaves at once, without waiting for the process group's threads: gloo's
    sometimes abort the process in its last moment, and a failing rank's peers may be inside a
    collective.
    """
    command = Command(world_from_environment())
    with command.resources:
        code = _run(command, body)
        if command.world.world_size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _run(command: Command, body: Callable[[Command], None]) -> int:
    alike = False
    try:
        try:
            body(command)
        finally:
            if command.stop is not None:
                command.stop.no_more()
        _part(command.accelerator)
        return command.exit_code
    except UserError as error:
        failure: BaseException = error
        code, message = EXIT_USER_ERROR, str(error)
        told = f"error: {message}"
        alike = command.accelerator is None or isinstance(error, AgreedError)
    except StoppedInStartUp as error:
        return _stopped_in_start_up(command, str(error))
    except KeyboardInterrupt as error:
        failure = error
        code, message = EXIT_INTERRUPTED, "interrupted"
        told, alike = message, True
    except Exception as error:
        failure = error
        code = 1
        several, rank = command.world.world_size > 1, command.world.rank
        lost = lost_contact(error, rank) if several else None
        message = lost or f"{type(error).__name__}: {error}"
        told = f"error: {lost}\n({first_line(error)})" if lost else traceback.format_exc()
    if not (alike and not command.world.is_main_process and command.main_rank_spoke()):
        command.write_failure(failure, message, told, code)
    return code


def _part(accelerator: Accelerator | None) -> None:
    """Leave the process group, when everything has been written: a peer that is gone by now
    changes nothing any more."""
    if accelerator is not None:
        with suppress(RuntimeError):
            accelerator.wait_for_everyone()
            accelerator.end_training()


def _stopped_in_start_up(command: Command, name: str) -> int:
    """End after a signal that came before the first step."""
    if name == "SIGTERM" and command.world.world_size > 1:
        # The launcher's, because another rank ended? Then it is no preemption.
        message = (
            "SIGTERM came during the start-up, from a scheduler, or from the launcher because "
            "another rank ended; nothing is lost: repeat the command"
        )
        command.write_failure(StoppedInStartUp(name), message, f"error: {message}", 1)
        return 1
    reason = f"{name} during the start-up; the same command goes on"
    if command.world.is_main_process:
        logger.info("stopped by %s", reason)
        command.write_status("preempted", reason, EXIT_PREEMPTED)
    return EXIT_PREEMPTED


def leave(code: int) -> None:
    """End the process with `code`; signals to stop that come now change nothing any more."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
