"""One command of a launch on this rank: its status, and how it ends.

Every ending is written to `status.json`. Scripts read that file, because a launcher turns every
exit code into 1.
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

from mmsa.config import RunConfig
from mmsa.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    AgreedError,
    ShardDamage,
    UserError,
    first_line,
)
from mmsa.foundation import atomic_write
from mmsa.foundation.closed_stdout import discard_stdout, flush_stdout, stdout_has_gone
from mmsa.foundation.held_directory import HeldDirectory
from mmsa.foundation.open_files import require_open_files, too_many_open
from mmsa.process.collective_errors import lost_contact
from mmsa.process.runtime import World, world_from_environment
from mmsa.process.status import read_status
from mmsa.process.stop_request import StoppedInStartUp, StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("mmsa")

_SETTLES_S = 0.5  # after this long a failing rank checks that status.json still has its reason
_MAIN_RANK_REPORTS_S = 3.0  # how long a rank waits for the main rank's report before its own
_MAIN_RANK_ENDS_S = 10.0  # and for its end, where there is no status file to see the report in


@dataclass
class Command:
    """One command of a launch: where its status goes, and how it ends."""

    world: World
    status_file: Path | None = None  # set as soon as the run directory is known
    step: int = 0
    accelerator: Accelerator | None = None
    exit_code: int = 0  # of an ending without an error
    facts: dict[str, Any] = field(default_factory=dict)  # further content of status.json
    resources: ExitStack = field(default_factory=ExitStack)  # closed when the command has ended
    to_finish: ExitStack = field(default_factory=ExitStack)  # closed once its ending is reported
    _stop_request: StopRequest | None = None
    _folder: HeldDirectory | None = None  # of the status file
    _started: float = field(default_factory=time.time)
    _reached: int = 0  # the step that the previous launch reached

    def report_to(self, status_file: Path, *, resumes: bool) -> None:
        """Report to this file from now on; `resumes`: an earlier launch began the run."""
        before = read_status(status_file) if resumes else {}
        earlier, reached = before.get("restarts"), before.get("step")
        self._reached = reached if isinstance(reached, int) else 0
        self.status_file = status_file
        self._folder = HeldDirectory(status_file.parent)
        self.facts |= {
            "restarts": 0 if not resumes else 1 + (earlier if isinstance(earlier, int) else 0),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
        }

    def log_repeated_steps(self, step: int) -> None:
        """Log how many steps of the previous launch lie beyond `step`, where this one starts."""
        if self._reached > step:
            logger.info(
                "the previous launch reached step %d; repeating %d step(s)",
                *(self._reached, self._reached - step),
            )

    def listen_for_stops(self, config: RunConfig) -> None:
        """Listen for the stop signals and the time limit of `config` until the command ends."""
        self._stop_request = self.resources.enter_context(
            StopRequest(
                config.stop_signals,
                max_time_s=config.max_time,
                timeout_s=config.stop_timeout_s,
                world_size=self.world.world_size,
                age_s=time.time() - self._started,
                give_up=self.give_up,
                grace_s=self.world.launcher_grace_s,
            )
        )

    @property
    def stop_request(self) -> StopRequest:
        """What `listen_for_stops` made."""
        assert self._stop_request is not None
        return self._stop_request

    def begin_loop(self, step: int, *, last_save_s: float | None, **facts: Any) -> None:
        """The loop starts at `step`: signals now ask for a stop, and the status says "running"."""
        self.step = step
        if self.world.is_main_process:
            self.write_status("running", **facts)
        self.stop_request.begin_loop(save_s=last_save_s)

    def write_status(
        self, state: str, reason: str = "", exit_code: int | None = None, **where: Any
    ) -> None:
        """Replace `status.json`; does nothing while no run directory is known.

        Host and process are those of the main rank, even where another rank writes. A failure keeps
        what this launch reported while it ran, such as its last validation.
        """
        if self.status_file is None or self._is_folder_gone():
            return
        content = {"state": state, "reason": reason, "step": self.step, "exit_code": exit_code}
        before = read_status(self.status_file)
        if not self.world.is_main_process:
            self.facts = {key: before.get(key, value) for key, value in self.facts.items()}
        if state == "failed" and self._of_this_launch():
            content = before | content
        atomic_write.write_status(self.status_file, content | self.facts | where)

    def write_failure(self, error: BaseException, message: str, shown: str, code: int) -> None:
        """Report a failure on standard error, in `log.txt` and in `status.json`.

        The first rank that fails says why. What its peers meet afterwards, a broken collective, is
        a consequence and does not replace its reason.
        """
        prefix = "" if self.world.is_main_process else f"[rank {self.world.rank}] "
        print(f"{prefix}{shown}", file=sys.stderr, flush=True)
        if self.status_file is None or self._is_folder_gone():
            return
        with (
            suppress(OSError),
            open(self.status_file.with_name("log.txt"), "a", encoding="utf-8") as log,
        ):
            stamp = logging.Formatter().formatTime(logging.makeLogRecord({}))  # as other lines
            log.write(f"{stamp} {prefix}{shown}\n")
        where = {}
        if isinstance(error, ShardDamage):
            where = {"rank": self.world.rank, "shard": error.shard, "key": error.key}
        if self.world.world_size == 1 or not self.peer_failed():
            self.write_status("failed", message, code, **where)
        if not self.world.is_main_process:
            # The main rank may be writing "running" right now; soon it waits for this rank.
            time.sleep(_SETTLES_S)
            if not self.peer_failed():
                self.write_status("failed", message, code, **where)

    def give_up(self, message: str, exit_code: int) -> None:
        """End this process at once, from any thread, without waiting for the main thread.

        With `EXIT_INTERRUPTED` every rank does so, and the main rank alone says why.
        """
        interrupted = exit_code == EXIT_INTERRUPTED
        try:
            if not interrupted or self.world.is_main_process or not self.main_rank_reported():
                shown = message if interrupted else f"error: {message}"
                self.write_failure(UserError(message), message, shown, exit_code)
        finally:  # whatever the main thread was writing at the same time
            os._exit(exit_code)

    def _is_folder_gone(self) -> bool:
        """Whether the run directory was taken away since this launch began: nothing must be written
        under its name, where another run may be by now."""
        return self._folder is not None and self._folder.was_taken_away()

    def peer_failed(self) -> bool:
        """Whether another rank of this launch has written a failure to `status.json`."""
        if self.status_file is None:
            return False
        return read_status(self.status_file).get("state") == "failed" and self._of_this_launch()

    def _of_this_launch(self) -> bool:
        """Whether `status.json` was written since this launch began."""
        assert self.status_file is not None
        try:
            return self.status_file.stat().st_mtime >= self._started - 1
        except OSError:
            return False

    def main_rank_reported(self) -> bool:
        """Whether the main rank has reported this failure; waits a little for it."""
        if self.status_file is None:
            # If this rank ended first, the launcher would end the main rank before its report.
            # Once the main rank has reported and ended, the launcher ends this rank here.
            time.sleep(_MAIN_RANK_ENDS_S)
            return False
        deadline = time.time() + _MAIN_RANK_REPORTS_S
        while time.time() < deadline:
            if self.peer_failed():
                return True
            time.sleep(0.1)
        return False


def run_command(body: Callable[[Command], None]) -> int:
    """Run `body` and return the exit code.

    0, or 2 after a `UserError`, 1 after a bug of ours, 75 after a preemption, 130 after Ctrl-C
    where that is not one, 141 where nobody reads what it prints. An error that every rank finds
    alike is reported once, by the main rank; one of a single rank by that rank. Under a launcher a
    rank exits at once, without waiting for the threads of the process group: gloo's sometimes
    abort the process at the very end, and the peers of a failing rank may be in a collective.
    """
    command = Command(world_from_environment())
    with command.resources:
        code = _run(command, body)
        command.to_finish.close()
        closed = flush_stdout()
        code = code or closed or 0
        if command.world.world_size > 1:
            sys.stderr.flush()
            os._exit(code)
    return code


def _run(command: Command, body: Callable[[Command], None]) -> int:
    alike = False
    try:
        try:
            require_open_files()
            body(command)
        finally:
            if command._stop_request is not None:
                command._stop_request.ignore_from_now_on()
        _leave_process_group(command.accelerator)
        return command.exit_code
    except UserError as error:
        failure: BaseException = error
        code, message = EXIT_USER_ERROR, str(error)
        shown = f"error: {message}"
        alike = command.accelerator is None or isinstance(error, AgreedError)
    except StoppedInStartUp as error:
        return _stopped_in_start_up(command, str(error))
    except KeyboardInterrupt as error:
        if not command.world.is_main_process:
            return EXIT_INTERRUPTED  # Ctrl-C reaches every rank; the main rank says so
        failure = error
        code, message = EXIT_INTERRUPTED, "interrupted"
        shown, alike = message, True
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_has_gone():
            return discard_stdout()
        failure = error
        code = EXIT_USER_ERROR if (limit := too_many_open(error)) else 1
        several, rank = command.world.world_size > 1, command.world.rank
        lost = limit or (lost_contact(error, rank) if several else None)
        message = lost or f"{type(error).__name__}: {error}"
        shown = f"error: {lost}\n({first_line(error)})" if lost else traceback.format_exc()
    if not (alike and not command.world.is_main_process and command.main_rank_reported()):
        command.write_failure(failure, message, shown, code)
    return code


def _leave_process_group(accelerator: Accelerator | None) -> None:
    """Leave the process group. Everything is written, so losing a peer from here on is harmless."""
    if accelerator is not None:
        with suppress(RuntimeError):
            accelerator.wait_for_everyone()
            accelerator.end_training()


def _stopped_in_start_up(command: Command, name: str) -> int:
    """End after a signal that arrived before the first step."""
    if name == "SIGTERM" and command.world.world_size > 1:
        # Perhaps from the launcher, because another rank ended: that is not a preemption.
        message = "ended by SIGTERM during start-up: " + (
            "another rank has failed, and says why"
            if command.peer_failed()
            else "if another rank has failed, its message says why; else a scheduler ended the "
            "run, and the same command begins again"
        )
        command.write_failure(StoppedInStartUp(name), message, f"error: {message}", 1)
        return 1
    reason = f"{name} during start-up; the same command resumes"
    if command.world.is_main_process:
        logger.info("stopped by %s", reason)
        command.write_status("preempted", reason, EXIT_PREEMPTED)
    return EXIT_PREEMPTED


def leave(code: int) -> None:
    """End the process with `code`, ignoring stop signals from here on."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)
