"""The request to stop: a signal, or the end of the time that a launch may take.

Each rank listens separately. The ranks agree at the end of a step (`step_reports.py`), save
together and end.

A Python signal handler runs between two bytecodes of the main thread, which may be stuck in a
collective whose peer is dead. Therefore a separate thread reads the signal numbers from the wakeup
descriptor of the `signal` module and watches the clock: if a request has arrived and the main
thread reaches no further step, the rank ends without saving. The SIGTERM that a launcher sends to
the surviving ranks when one has died is never taken for a preemption.

That thread also answers a signal at once, in words, and ends this process at a second Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from mmsa.errors import EXIT_INTERRUPTED

logger = logging.getLogger("mmsa")

MAX_TIME = "run.max_time"
_MAY_BE_IGNORED = ("SIGINT", "SIGHUP")  # by nohup, and in a shell's background
_UNMEASURED_SAVE_S = 30.0  # taken for the first save of a run, at most a tenth of `max_time_s`
_SAVE_MARGIN = 1.5  # a save may take this much longer than the one before
# A launcher and the terminal may deliver one Ctrl-C twice; a person who repeats it takes longer.
SECOND_CTRL_C_AFTER_S = 1.0


class StoppedInStartUp(KeyboardInterrupt):
    """A stop signal before the first step: nothing to save. The argument is its name."""


def end_at_once_on_ctrl_c() -> None:
    """Until a `StopRequest` listens, have Ctrl-C end this process with one line and exit code 130.

    Otherwise it would end in a traceback, on every rank, of whatever was being imported.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, b"interrupted before the run began; nothing was changed\n")
        os._exit(EXIT_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


class StopRequest:
    """The reasons to stop that this rank has received.

    A context manager: inside it the signals are handled, afterwards they are as before.
    `give_up(message, exit_code)` is called on a separate thread and must end the process.
    """

    def __init__(
        self,
        signals: Sequence[str],
        *,
        max_time_s: float | None,
        timeout_s: float,
        world_size: int,
        age_s: float,
        give_up: Callable[[str, int], None],
        grace_s: float | None = None,
    ) -> None:
        """`age_s`: for how long this launch has been running, of its `max_time_s`. `grace_s`: for
        how long the launcher lets its ranks live after SIGTERM; None without a launcher."""
        self.reasons = (*signals, MAX_TIME)  # the same on all ranks
        self._grace_s = grace_s
        self._heard: set[str] = set()
        self._heard_at = 0.0
        self._first_ctrl_c_at: float | None = None
        self._timeout_s = timeout_s
        self._max_time_s = max_time_s
        self._give_up = give_up
        self._alone = world_size == 1
        self._in_loop = False
        self._paused = False
        self._ending = False
        self._last_step_end = time.monotonic()
        self._started = self._last_step_end - age_s
        self._longest_s = 0.0
        self._save_s: float | None = None
        self._earlier: list[tuple[int, Any]] = []

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # a notebook's thread may not handle signals
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._earlier_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for name in self.reasons[:-1]:
            number = signal.Signals[name]
            if name in _MAY_BE_IGNORED and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._earlier.append((number, signal.signal(number, self._in_main_thread)))
            signal.siginterrupt(number, False)  # system calls of libraries continue
        threading.Thread(target=self._listen, name="stop-request", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._earlier and threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._earlier_wakeup)
        for number, handler in self._earlier:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.ignore_from_now_on()
        os.close(self._write_end)  # the thread reads end of file and ends

    def begin_loop(self, *, save_s: float | None) -> None:
        """From now on a signal is a request that the ranks agree on; before, it ends the start-up.

        `save_s`: how long the last save of this run took, if known.
        """
        if save_s is not None and self._grace_s is not None and save_s > self._grace_s:
            logger.warning(
                "the last save of this run took %.0f s, but the launcher kills its ranks %.0f s "
                "after SIGTERM: a checkpoint would not be finished. Start with "
                "PET_SHUTDOWN_TIMEOUT=%.0f (docs/fault-tolerance.md)",
                *(save_s, self._grace_s, 2 * save_s + 10),
            )
        self._in_loop = True
        self._save_s = save_s
        self._last_step_end = time.monotonic()

    def ignore_from_now_on(self) -> None:
        """The command is ending: further signals change nothing."""
        self._in_loop = self._paused = self._ending = True

    def heard(self) -> list[str]:
        """The reasons to stop so far. Called at each step's end, which proves the peers alive."""
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._last_step_end)
        self._last_step_end = now
        if self._max_time_s is not None and now + self._reserve_s() >= self._end:
            self._heard.add(MAX_TIME)
        return [reason for reason in self.reasons if reason in self._heard]

    @property
    def _end(self) -> float:
        return self._started + (self._max_time_s or 0.0)

    def _reserve_s(self) -> float:
        """Seconds that a stop takes: to the next step's end, where it is agreed on, and a save."""
        save_s = self._save_s
        if save_s is None:
            save_s = min(_UNMEASURED_SAVE_S, 0.1 * (self._max_time_s or 0.0))
        return self._longest_s + _SAVE_MARGIN * save_s

    @contextmanager
    def paused(self, *, saving: bool = False) -> Iterator[None]:
        """Inside, no step end is expected: a validation or a save, whose time is measured."""
        self._paused, begun = True, time.monotonic()
        try:
            yield
        finally:
            self._paused, self._last_step_end = False, time.monotonic()
            if saving:
                self._save_s = self._last_step_end - begun

    def expect_save(self, save_s: float | None) -> None:
        """What a save takes that `paused` does not see to its end; None: not known yet."""
        if save_s is not None:
            self._save_s = save_s

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if not self._in_loop:
            raise StoppedInStartUp(signal.Signals(number).name)

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([self._read_end], [], [], self._patience_s())
            if ready:
                numbers = os.read(self._read_end, 64)
                if not numbers:
                    os.close(self._read_end)
                    return
                self._hear({signal.Signals(number).name for number in numbers} & set(self.reasons))
            elif self._patience_s() == 0.0:
                who = " and ".join(sorted(self._heard))
                self._give_up(
                    f"received {who}, but the other ranks have not answered for "
                    f"{self._timeout_s:g} s (run.stop_timeout_s): one of them, or its machine, is "
                    "gone. Nothing was saved; the same command resumes from the last checkpoint",
                    1,
                )
                return

    def _hear(self, names: set[str]) -> None:
        """Note signals that have arrived, answer the first, and end at a second Ctrl-C."""
        if self._ending or not names:
            return
        now = time.monotonic()
        first = not self._heard
        if first:
            self._heard_at = now
        self._heard |= names
        if first and self._in_loop:
            logger.info("%s: %s", " and ".join(sorted(names)), self._answer(names))
        if "SIGINT" not in names:
            return
        if self._first_ctrl_c_at is None:
            self._first_ctrl_c_at = now
        elif now - self._first_ctrl_c_at >= SECOND_CTRL_C_AFTER_S:
            self._give_up(
                "ended by a second Ctrl-C without saving; the same command resumes from the last "
                "checkpoint",
                EXIT_INTERRUPTED,
            )

    def _answer(self, names: set[str]) -> str:
        under_way = "this validation or save" if self._paused else "this step"
        again = " (Ctrl-C again ends at once, without saving)" if "SIGINT" in names else ""
        return f"stopping after {under_way}, then saving{again}"

    def _patience_s(self) -> float | None:
        """Seconds until this rank ends by itself; None while it has no reason to."""
        if self._alone or not self._heard:
            return None
        if self._paused:
            return self._timeout_s
        waited = time.monotonic() - max(self._heard_at, self._last_step_end)
        return max(0.0, self._timeout_s - waited)
