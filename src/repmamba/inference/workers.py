"""Several tiles at once: threads of one process, each with one torch compute thread.

The last bits of a sum depend on how many torch threads share it. With one thread per tile they do
not: any number of workers gives the same bytes. The compiled passes (compiled_runner.py) give the
same bits for any number of threads, so where there are fewer tiles than cores, each tile's passes
share the remaining cores. Workers are threads, because torch and our kernels release the GIL.

All calls in progress share one set of workers, as many as the largest number that any call asked
for: six requests of a service together compute as many tiles at once as one request does, and take
turns. The workers end with the last call.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from repmamba.cores import available_cores
from repmamba.errors import UsageError
from repmamba.inference.compiled_runner import share_passes
from repmamba.prefetch import prefetch

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # items beyond those being computed: one read ahead, one finished and not yet taken

Task = Callable[[], None]

# two runs that begin at once would take each other's numbers for the process's
_beginning = threading.Lock()
# threads within one_compute_thread, and torch's number before the first of them
_inside, _threads_outside = 0, 1


def choose_workers(asked: int | None, device: torch.device) -> int:
    """How many tiles are computed side by side: one for each CPU core, one on other devices. Raises
    UsageError.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"{asked} workers compute nothing; at least 1 is needed.")
    if device.type != "cpu":
        return 1
    side = asked or available_cores()
    return side if _most is None else min(side, _most)


def set_tiles_in_flight(count: int | None) -> None:
    """Let all calls of this process together compute at most so many tiles at once, however many
    workers they ask for.

    None, as at the beginning: as many as the most that one of them asked for, the number of CPU
    cores unless it did. Holds for calls that begin later, and changes no result. Raises UsageError.
    """
    global _most
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(
            f"count is {count!r:.40}; it takes a whole number of tiles, at least 1, or None."
        )
    _most = count


def map_tiles(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    count: int | None = None,
) -> Generator[Result, None, None]:
    """function of every item, in order, by so many workers; items are drawn by the caller's thread,
    a few ahead.

    count: of the items, where it is known; fewer than workers leave more threads to each, within
    the number that torch has for the caller. While a result is used or an item is made, the workers
    go on computing. The first exception ends it, whether it comes from function, from items or, by
    the generator's close, from the caller; what has not begun is never computed.
    """
    side = workers if count is None else max(1, min(workers, count))
    with _share_of_the_workers(side) as share:
        yield from prefetch(share, function, items, side + IN_FLIGHT)


@contextmanager
def one_compute_thread() -> Iterator[None]:
    """The calling thread, which somebody else began, computes as one of these workers does.

    The number of torch that it sets is that of threads still to come as well (see `_pool`): the
    first one in keeps what it was, and each that leaves puts that back.
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


class _Workers:
    """The threads that compute the tiles of all calls in progress."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._calls = 0

    def enter(self, side: int) -> int:
        """One more call, which computes so many tiles at once; torch's number of threads for its
        thread.
        """
        with _beginning:
            threads_of_caller = torch.get_num_threads()
            self._begin(side - len(self._threads), threads_of_caller)
            self._calls += 1
        return threads_of_caller

    def leave(self) -> None:
        """One call less. With the last one the threads end, and the memory that they kept is given
        back.
        """
        with _beginning:
            self._calls -= 1
            ending = [] if self._calls else self._threads
            if ending:
                self._threads = []
                for _ in ending:
                    self._tasks.put(None)
                for thread in ending:
                    thread.join()

    def put(self, task: Task) -> None:
        """Have a task done after those that wait already."""
        self._tasks.put(task)

    def _begin(self, missing: int, threads_of_caller: int) -> None:
        """Threads with one compute thread of torch each.

        torch keeps its number for each thread and for those still to come: what a worker sets for
        itself would be that of any thread begun later. So the number of the process is put back
        before anything is computed.
        """
        for _ in range(missing):
            begun = threading.Event()
            thread = threading.Thread(
                target=self._work, args=(begun,), name="repmamba-tile", daemon=True
            )
            thread.start()
            begun.wait()
            self._threads.append(thread)
        if missing > 0:
            torch.set_num_threads(threads_of_caller)

    def _work(self, begun: threading.Event) -> None:
        torch.get_num_threads()  # a thread's first use of torch sets its number: let that be over
        torch.set_num_threads(1)
        begun.set()
        while (task := self._tasks.get()) is not None:
            task()


class _Share(Executor):
    """One call's share of the workers: so many of its tasks at once, the others in their order."""

    def __init__(self, workers: _Workers, side: int, threads: int) -> None:
        self._workers, self._free, self._threads = workers, side, threads
        self._waiting: deque[Task] = deque()
        self._guard = threading.Lock()
        self._futures: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()

        def task() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    self._compute(future, lambda: function(*args, **kwargs))
            finally:
                self._next()

        with self._guard:
            self._futures = {each for each in self._futures if not each.done()} | {future}
            if starting := self._free > 0:
                self._free -= 1
            else:
                self._waiting.append(task)
        if starting:
            self._workers.put(task)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what has not begun, and wait for what has."""
        for future in self._futures:
            future.cancel()
        wait_for([future for future in self._futures if not future.cancelled()])

    def _compute(self, future: Future[Any], function: Callable[[], Any]) -> None:
        share_passes(self._threads)
        try:
            result = function()
        except BaseException as error:  # the caller's to raise
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            share_passes(0)

    def _next(self) -> None:
        with self._guard:
            task = self._waiting.popleft() if self._waiting else None
            self._free += task is None
        if task is not None:
            self._workers.put(task)


_workers = _Workers()
_most: int | None = None  # tiles in flight, of all calls


def _forget_workers() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _workers, _beginning, _inside
    _workers, _beginning, _inside = _Workers(), threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


@contextmanager
def _share_of_the_workers(side: int) -> Iterator[_Share]:
    """Workers for one call; at the end, what they have not begun is cancelled."""
    workers = _workers
    share = _Share(workers, side, max(1, min(workers.enter(side), available_cores()) // side))
    try:
        yield share
    finally:
        share.shutdown()
        workers.leave()
