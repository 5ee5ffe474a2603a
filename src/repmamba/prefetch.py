"""Computing ahead: what will be wanted next is computed by threads while what is there is being
used.

`Executor.map` submits everything at once, and what is finished waits in memory until it is taken.
Here few are in hand.
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
    """function of every item, in order, computed by the pool; items are drawn by the caller's
    thread.

    most: items in hand, that is being computed or not yet taken, the one about to be given among
    them; at least 1. While a result is used or an item is made, the pool goes on computing. The
    first exception ends it, whether it comes from function, from items or, by the generator's
    close, from the caller; what has not begun is never computed. The pool stays open.
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
