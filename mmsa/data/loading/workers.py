"""Loader processes: batches made ahead of their use, handed over without names and without locks.

Each worker has a socket pair of its own with the rank. The rank sends credits, one byte each; the
worker answers each with one batch, whose bytes it writes to an anonymous file (memfd) that travels
as a descriptor (handover.py). The rank copies them out before it sends the next credit, so a worker
writes to `AHEAD` files in turn for as long as it lives: fresh pages would cost several times the
copying (docs/benchmarks.md). What follows from that, and why torch's DataLoader does not serve:

- nothing has a name: after `kill -9` of a whole launch no semaphore and no segment is left in
  /dev/shm, and its size, 64 MB in many containers, is no limit;
- no lock is shared: a worker that is killed cannot take one with it. The rank reads the end of its
  socket at once;
- a worker whose rank is gone reads the end of the same socket, and ends;
- at most `AHEAD` batches of a worker wait or are being made;
- a worker that hangs, in a dead file system mostly, is given up after a time, and ended. What it
  was reading stands on a board in memory that both share (whereabouts.py).
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import select
import signal
import socket
import sys
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from mmsa.data.loading.tensor_ipc import receive, send
from mmsa.data.loading.worker_position import PositionBoard, anonymous_file, board_file, note_on
from mmsa.errors import ShardDamage, UserError
from mmsa.process.memory import keep_freed_memory

AHEAD = 2  # batches of one worker that wait for the rank or are being made
DEFAULT_TIMEOUT_S = 300.0  # below the 600 s after which NCCL gives up a collective
_SLICE_S = 1.0
_GRACE_S = 2.0  # how long the exit code of a dead worker may take to arrive

Batch = dict[str, Any]


class LoaderWorkers:
    """The batches of several pipelines, one process each, in turn: 0, 1, ..., 0, 1, ...

    The processes start when the object is made, by forkserver. They end with the pipelines, when
    the object is dropped, or with this process, however it ends.
    """

    def __init__(
        self,
        pipelines: Sequence[Iterable[Any]],
        *,
        rank: int = 0,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """`pipelines`: picklable iterables of batches (dictionaries) or other picklable items.

        A batch that takes longer than `timeout_s` is an error; 0 waits for ever. `rank` is for
        the message alone.
        """
        context = start_server()
        self._sockets: list[socket.socket] = []
        self._processes = []
        self._boards: list[PositionBoard] = []
        self._rank = rank
        self.timeout_s = timeout_s
        self._turn = 0
        for number, pipeline in enumerate(pipelines):
            ours, theirs = socket.socketpair()
            process = context.Process(
                target=_work, args=(theirs, pipeline), name=f"loader-{number}", daemon=True
            )
            with _without_main_module():
                process.start()
            theirs.close()  # else its end would not be read when the worker dies
            self._sockets.append(ours)
            self._processes.append(process)
            with board_file() as file:
                self._boards.append(PositionBoard(file.fileno()))
                with suppress(ConnectionError):  # it died already, which is told at the first batch
                    socket.send_fds(ours, [b"b"], [file.fileno()])
            _give_credit(ours, AHEAD)
        # At its end this process waits for them, after a SIGTERM that they do not hear.
        atexit.register(_hang_up, weakref.ref(self))

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next item. Raises `UserError` where its worker was killed or hangs."""
        kind, item = self._receive()
        if kind == "end":
            raise StopIteration
        if kind == "error":
            raise RuntimeError(f"loader worker {self._turn} failed:\n{item}")
        _give_credit(self._sockets[self._turn], 1)
        self._turn = (self._turn + 1) % len(self._sockets)
        return item

    def _receive(self) -> tuple[str, Any]:
        connection = self._sockets[self._turn]
        if not self._arrives(connection):
            raise self._silence()
        try:
            return receive(connection)
        except (EOFError, ConnectionError):
            raise self._death() from None

    def _arrives(self, connection: socket.socket) -> bool:
        """Wait for a message, or for the end of the socket."""
        if not self.timeout_s:
            return True
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        # In slices: of a pause of the whole job (SLURM's suspend stops every process) one counts.
        num_slices = math.ceil(self.timeout_s / _SLICE_S)
        slice_ms = 1000 * self.timeout_s / num_slices
        return any(poll.poll(slice_ms) for _ in range(num_slices))

    def _silence(self) -> UserError:
        """The error of a worker that hangs; it is ended, because it may never read that we are."""
        process, shard = self._processes[self._turn], self._boards[self._turn].read()
        process.kill()
        message = (
            f"rank {self._rank} got no batch from loader worker {self._turn} of "
            f"{len(self._processes)} (process {process.pid}) in {self.timeout_s:g} s; it was at "
            f"{shard or 'no shard yet'}. Most often the file system that holds the shards does "
            "not answer. Where it is only slow, give it more time with data.timeout_s. The same "
            "command goes on from the last checkpoint"
        )
        return ShardDamage(message, shard=shard) if shard else UserError(message)

    def _death(self) -> UserError:
        process = self._processes[self._turn]
        process.join(_GRACE_S)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else "ended early"
        return UserError(
            f"loader worker {self._turn} of {len(self._processes)} (process {process.pid}) {how}; "
            "expected is that it lives as long as its rank. Most often the machine or the job ran "
            "out of memory: use fewer data.num_workers, a smaller train.micro_batch_size, or ask "
            "for more memory. The same command goes on from the last checkpoint"
        )


def start_server() -> ForkServerContext:
    """Start the process that workers are forked from, unless it runs; returns at once.

    It does the slow imports, once for all workers, beside what this process does meanwhile: call it
    as soon as it is known that there will be workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmsa.data.stream"])
    forkserver.ensure_running()
    return context


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let multiprocessing forget which script started this process.

    It would import that script in each worker, which needs nothing of it: seconds for train.py, and
    a second run of a script that is not guarded by `__name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__spec__", "__file__") if name in vars(main)]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in names}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _hang_up(workers: weakref.ref[LoaderWorkers]) -> None:
    living = workers()
    if living is not None:
        for connection in living._sockets:
            connection.close()


def _give_credit(to: socket.socket, number: int) -> None:
    # A worker that is dead or at its end takes none; what it has sent before is read first.
    with suppress(ConnectionError):
        to.sendall(b"+" * number)


def _work(connection: socket.socket, pipeline: Iterable[Any]) -> None:
    """The life of a worker: an item for each credit, then the end or an error."""
    # Signals to a job's whole process group (Ctrl-C, a scheduler's warning, a launcher that ends
    # its ranks) are the rank's affair: it may save, and needs no further batch when it is gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        for descriptor in descriptors:  # none where the rank is gone
            note_on(PositionBoard(descriptor))
            os.close(descriptor)
        # The rank has copied a file when it sends the credit for the batch after the next.
        files = cycle([anonymous_file("mmsa-batch") for _ in range(AHEAD)])
        items = iter(pipeline)
        while connection.recv(1):
            try:
                message = ("item", next(items))
            except StopIteration:
                message = ("end", None)
            except Exception:
                message = ("error", traceback.format_exc())
            send(connection, message, next(files))
            if message[0] != "item":
                # Wait until it has been read: closing first could discard it.
                while connection.recv(64):
                    pass
                return
    except ConnectionError:
        pass  # the rank is gone
    except BaseException:  # an item that does not travel: the rank will say that we ended early
        traceback.print_exc()
    finally:
        # The rank is gone or has all it wants; threads of libraries are not worth waiting for.
        os._exit(0)
