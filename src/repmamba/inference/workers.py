"""Tiles side by side: several threads of one process, each computing its tile with one compute thread of torch.

The last bits of a sum depend on how many threads share it. With one compute thread a tile, they depend on nothing: any
number of workers gives the same bytes. Threads suffice, since torch and our kernels let go of Python's lock while they
compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from repmamba.errors import UsageError
from repmamba.inference.device import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # items beyond those being computed: one read ahead, one finished and not yet taken


def choose_workers(asked: int | None, device: torch.device) -> int:
    """How many tiles are computed side by side: one for each CPU core, one on other devices. Raises UsageError."""
    if asked is not None and asked < 1:
        raise UsageError(f"{asked} workers compute nothing; at least 1 is needed.")
    if device.type != "cpu":
        return 1
    return asked or available_cores()


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """function of every item, in order, by so many workers; items are drawn by the caller's thread, a few ahead.

    While a result is used or an item is made, the workers go on computing. The first exception ends it, whether it
    comes from function, from items or, by the generator's close, from the caller; what has not begun is never computed.
    """
    threads_of_caller = torch.get_num_threads()
    # torch keeps this number for each thread by itself, so it is set in every worker, and afterwards for new threads.
    pool = ThreadPoolExecutor(workers, "repmamba-tile", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers + IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_of_caller)
