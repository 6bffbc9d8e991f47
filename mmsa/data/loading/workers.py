"""Loader processes: they prepare batches ahead of their use, without shared names or locks.

Each worker has its own socket pair with the rank. The rank sends credits, one byte each; the worker
answers each credit with one batch, whose bytes it writes to an anonymous file (memfd) and passes as
a descriptor (tensor_ipc.py). The rank copies the bytes out before it sends the next credit, so a
worker reuses the same `AHEAD` files all its life: fresh pages would cost several times as much as
the copy (docs/benchmarks.md). What this buys, compared with torch's DataLoader (docs/data.md):

- nothing has a name: after `kill -9` of a whole launch no semaphore or segment is left in /dev/shm,
  and its size, 64 MB in many containers, does not matter;
- no lock is shared: a killed worker cannot leave one locked. The rank sees the end of its socket
  at once;
- a worker whose rank is gone sees the end of the same socket, and exits;
- at most `AHEAD` batches per worker are waiting or in preparation;
- a worker that hangs, usually in a dead file system, is killed after a timeout, and the error names
  the shard that it was reading (worker_position.py).
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import select
import signal
import socket
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from mmsa.data.loading.tensor_ipc import receive, send
from mmsa.data.loading.worker_position import (
    SharedPosition,
    anonymous_file,
    position_file,
    record_positions_in,
)
from mmsa.errors import ShardDamage, UserError
from mmsa.foundation.hidden_main import without_main_module
from mmsa.process.memory import keep_freed_memory

AHEAD = 2  # batches of one worker that wait for the rank or are in preparation
DEFAULT_TIMEOUT_S = 300.0  # below the 600 s after which NCCL aborts a collective
_POLL_S = 1.0
_EXIT_CODE_S = 2.0  # how long to wait for the exit code of a dead worker

Batch = dict[str, Any]


class LoaderWorkers:
    """The batches of several pipelines, one process each, round-robin: 0, 1, ..., 0, 1, ...

    The constructor starts the processes, by forkserver. They exit when the pipelines end, when the
    object is deleted, or when this process ends in whatever way.
    """

    def __init__(
        self,
        pipelines: Sequence[Iterable[Any]],
        *,
        rank: int = 0,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """`pipelines`: picklable iterables of batches (dictionaries) or other picklable items.

        A batch that takes longer than `timeout_s` is an error; 0 waits forever. `rank` appears
        only in error messages.
        """
        context = start_forkserver()
        self._sockets: list[socket.socket] = []
        self._processes = []
        self._positions: list[SharedPosition] = []
        self._rank = rank
        self.timeout_s = timeout_s
        self._turn = 0
        for number, pipeline in enumerate(pipelines):
            ours, theirs = socket.socketpair()
            process = context.Process(
                target=_run_worker, args=(theirs, pipeline), name=f"loader-{number}", daemon=True
            )
            with without_main_module():
                process.start()
            theirs.close()  # otherwise we would not see the end of the socket when the worker dies
            self._sockets.append(ours)
            self._processes.append(process)
            with position_file() as file:
                self._positions.append(SharedPosition(file.fileno()))
                with suppress(ConnectionError):  # already dead: the first batch reports it
                    socket.send_fds(ours, [b"p"], [file.fileno()])
            _send_credits(ours, AHEAD)
        # At exit, multiprocessing sends SIGTERM, which workers ignore, and waits for them.
        atexit.register(_close_sockets, weakref.ref(self))

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next item. Raises `UserError` if its worker was killed or hangs."""
        kind, item = self._receive()
        if kind == "end":
            raise StopIteration
        if kind == "error":
            raise RuntimeError(f"loader worker {self._turn} failed:\n{item}")
        _send_credits(self._sockets[self._turn], 1)
        self._turn = (self._turn + 1) % len(self._sockets)
        return item

    def _receive(self) -> tuple[str, Any]:
        connection = self._sockets[self._turn]
        if not self._wait_for_message(connection):
            raise self._hang_error()
        try:
            return receive(connection)
        except (EOFError, ConnectionError):
            raise self._death_error() from None

    def _wait_for_message(self, connection: socket.socket) -> bool:
        """Wait for a message or the end of the socket; False after `timeout_s`."""
        if not self.timeout_s:
            return True
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        # In short waits: if the whole job is paused (SLURM's suspend stops every process), only
        # one of them passes.
        num_waits = math.ceil(self.timeout_s / _POLL_S)
        wait_ms = 1000 * self.timeout_s / num_waits
        return any(poll.poll(wait_ms) for _ in range(num_waits))

    def _hang_error(self) -> UserError:
        """Kill the worker that hangs, because it may never notice that we are gone."""
        process, shard = self._processes[self._turn], self._positions[self._turn].read()
        process.kill()
        last_read = f"its last read was from {shard}" if shard else "it has not read a shard yet"
        message = (
            f"rank {self._rank} got no batch from loader worker {self._turn} of "
            f"{len(self._processes)} (process {process.pid}) in {self.timeout_s:g} s; "
            f"{last_read}. Usually the file system that holds the shards does not respond. If it "
            "is only slow, increase data.timeout_s. The same command resumes from the last "
            "checkpoint"
        )
        return ShardDamage(message, shard=shard) if shard else UserError(message)

    def _death_error(self) -> UserError:
        process = self._processes[self._turn]
        process.join(_EXIT_CODE_S)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else "exited early"
        return UserError(
            f"loader worker {self._turn} of {len(self._processes)} (process {process.pid}) {how}; "
            "it should live as long as its rank. Usually the machine or the job ran out of memory: "
            "use fewer data.num_workers, a smaller train.micro_batch_size, or request more memory. "
            "The same command resumes from the last checkpoint"
        )


def start_forkserver() -> ForkServerContext:
    """Start the process that workers are forked from, if it is not running; returns at once.

    It does the slow imports once for all workers, in parallel with this process: call it as soon as
    it is known that there will be workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmsa.data.stream"])
    forkserver.ensure_running()
    return context


def _close_sockets(workers: weakref.ref[LoaderWorkers]) -> None:
    living = workers()
    if living is not None:
        for connection in living._sockets:
            connection.close()


def _send_credits(to: socket.socket, number: int) -> None:
    # A worker that is dead or finished takes no more; what it sent before is still read.
    with suppress(ConnectionError):
        to.sendall(b"+" * number)


def _run_worker(connection: socket.socket, pipeline: Iterable[Any]) -> None:
    """A worker's main function: send an item for each credit, finally the end or an error."""
    # Signals to the job's whole process group (Ctrl-C, a scheduler's warning, a launcher that ends
    # its ranks) are for the rank: it may need batches until it has saved, and its end ends us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        for descriptor in descriptors:  # none if the rank is gone
            record_positions_in(SharedPosition(descriptor))
            os.close(descriptor)
        # A credit says that the rank has copied the batch before last, so its file is free again.
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
                # Wait until it has been read; closing the socket first could discard it.
                while connection.recv(64):
                    pass
                return
    except ConnectionError:
        pass  # the rank is gone
    except BaseException:  # an item that cannot be pickled; the rank reports that we exited early
        traceback.print_exc()
    finally:
        # Do not wait for threads of libraries: the rank is gone or needs nothing more.
        os._exit(0)
