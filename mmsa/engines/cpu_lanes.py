"""Batches that a CPU computes at the same time, each with the threads that it would have alone.

Rounding depends on the number of threads of one batch. So a batch keeps the number that results are
defined by (`eval.cpu_threads`), and cores beyond it take the next batches.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from mmsa.process.runtime import logger

_MOST = 4  # batches at a time: each holds its activations
_ModelT = TypeVar("_ModelT", bound=nn.Module)
_BatchT = TypeVar("_BatchT")
_ResultT = TypeVar("_ResultT")


def fix_threads(threads: int) -> int:
    """Let torch compute with `threads` of the CPU; returns how many batches are computed at a time.

    Called once in a process, by whose threads until then OMP_NUM_THREADS and launchers say how many
    it may use.
    """
    lanes = min(_MOST, max(1, torch.get_num_threads() // threads))
    torch.set_num_threads(threads)
    return lanes


def twin_of(model: _ModelT) -> _ModelT:
    """The same model for another thread, to be used at the same time: modules and buffers are
    copies, parameters are not. Raises `RuntimeError` for a model that cannot be copied."""
    return copy.deepcopy(model, {id(one): one for one in model.parameters()})


def in_lanes(
    model: nn.Module,
    batches: Iterable[_BatchT],
    compute: Callable[[nn.Module, _BatchT], _ResultT],
    *,
    lanes: int,
) -> Generator[tuple[_BatchT, _ResultT], None, None]:
    """Each batch with `compute(model, batch)`, in the order of the batches, without gradients.

    `lanes` of them are computed at a time, each with the threads that torch has now, and one on a
    GPU; at most as many wait. What `compute` raises is raised here, in its batch's turn.
    """
    threads = torch.get_num_threads()
    if any(one.device.type != "cpu" for one in model.parameters()):
        lanes = 1
    free: SimpleQueue[nn.Module] = SimpleQueue()
    free.put(model)
    try:
        for _ in range(lanes - 1):
            free.put(twin_of(model))
    except RuntimeError as error:  # tensors that belong to a graph of gradients
        logger.info("batches are computed one at a time: the model cannot be copied (%s)", error)
        lanes = 1

    # Not inference mode: ZeRO-3 frees gathered weights, and some models of extensions change
    # tensors, in place.
    @torch.no_grad()
    def computed(batch: _BatchT) -> _ResultT:
        one = free.get()
        try:
            return compute(one, batch)
        finally:
            free.put(one)

    def of_a_thread(batch: _BatchT) -> _ResultT:
        # The number belongs to the thread that sets it, but not before it was asked for.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        return computed(batch)

    if lanes == 1:
        yield from ((batch, computed(batch)) for batch in batches)
        return
    waiting: deque[tuple[_BatchT, Future[_ResultT]]] = deque()
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(of_a_thread, batch)))
            if len(waiting) == 2 * lanes:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
