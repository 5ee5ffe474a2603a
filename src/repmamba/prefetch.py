"""Prefetching: threads compute the next items while the caller uses the current one.

`Executor.map` submits everything at once, and finished results wait in memory until they are taken.
Here only a few items are in progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Result, None, None]:
    """function(item) for every item, in order, computed by the pool.

    The caller's thread draws the items. most: items that are being computed or not yet taken,
    including the one about to be yielded; at least 1. The first exception ends it, from function,
    from items, or from the caller by closing the generator; what has not started is cancelled. The
    pool stays open.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
