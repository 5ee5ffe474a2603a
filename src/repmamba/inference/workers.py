"""Tiles side by side: several threads of one process, each computing its tile with one compute thread of torch.

The last bits of a sum depend on how many threads of torch share it. With one a tile, they depend on nothing: any number
of workers gives the same bytes. The compiled passes (network/inference_cpu.py) give the same bits for any number of
threads, so where there are fewer tiles than cores, each tile's passes share what is left. Workers are threads, since
torch and our kernels let go of Python's lock while they compute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from repmamba.ahead import ahead
from repmamba.cores import available_cores
from repmamba.errors import UsageError
from repmamba.network.inference_cpu import share_passes

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # items beyond those being computed: one read ahead, one finished and not yet taken

_beginning = threading.Lock()  # two runs that begin at once would take each other's numbers for the process's
_inside, _threads_outside = 0, 1  # threads within one_compute_thread, and torch's number before the first of them


def choose_workers(asked: int | None, device: torch.device) -> int:
    """How many tiles are computed side by side: one for each CPU core, one on other devices. Raises UsageError."""
    if asked is not None and asked < 1:
        raise UsageError(f"{asked} workers compute nothing; at least 1 is needed.")
    if device.type != "cpu":
        return 1
    return asked or available_cores()


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, count: int | None = None
) -> Generator[Result, None, None]:
    """function of every item, in order, by so many workers; items are drawn by the caller's thread, a few ahead.

    count: of the items, where it is known; fewer than workers leave more threads to each, within the number that
    torch has for the caller.
    While a result is used or an item is made, the workers go on computing. The first exception ends it, whether it
    comes from function, from items or, by the generator's close, from the caller; what has not begun is never computed.
    """
    side = workers if count is None else max(1, min(workers, count))
    with _pool(side) as pool:
        yield from ahead(pool, function, items, side + IN_FLIGHT)


@contextmanager
def one_compute_thread() -> Iterator[None]:
    """The calling thread, which somebody else began, computes as one of these workers does.

    The number of torch that it sets is that of threads still to come as well (see `_pool`): the first one in keeps what
    it was, and each that leaves puts that back.
    """
    global _inside, _threads_outside
    with _beginning:
        if not _inside:
            _threads_outside = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    share_passes(1)
    try:
        yield
    finally:
        share_passes(0)
        with _beginning:
            _inside -= 1
            torch.set_num_threads(_threads_outside)


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads with one compute thread of torch each; at the end, what they have not begun is cancelled.

    torch keeps its number for each thread and for those still to come: what a worker sets for itself would be that of
    any thread begun later. So all workers begin at once, and the number of the process is put back before they compute.
    """
    pool = ThreadPoolExecutor(workers, "repmamba-tile")
    begun = threading.Barrier(workers)

    def begin(threads: int) -> None:
        torch.get_num_threads()  # a thread's first use of torch sets its number: let that be over
        torch.set_num_threads(1)
        share_passes(threads)
        begun.wait()  # so that each worker takes one of the beginnings

    try:
        with _beginning:
            threads_of_caller = torch.get_num_threads()
            share = max(1, min(threads_of_caller, available_cores()) // workers)
            try:
                for beginning in [pool.submit(begin, share) for _ in range(workers)]:
                    beginning.result()
            finally:
                begun.abort()
                torch.set_num_threads(threads_of_caller)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
