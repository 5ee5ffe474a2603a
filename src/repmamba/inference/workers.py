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
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from repmamba.cores import available_cores
from repmamba.errors import UsageError
from repmamba.inference.compiled_runner import share_passes
from repmamba.prefetch import prefetch

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # tiles beyond those being computed: one prefetched, one finished and not yet taken

Task = Callable[[], None]

# two calls that start at once would take each other's thread number for the process's
_beginning = threading.Lock()
# threads inside one_compute_thread, and torch's number before the first of them
_inside, _threads_outside = 0, 1


def choose_workers(asked: int | None, device: torch.device) -> int:
    """How many tiles are computed at once: by default one per CPU core, one on other devices.

    Raises UsageError.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"workers is {asked}; at least 1 is needed.")
    if device.type != "cpu":
        return 1
    side = asked or available_cores()
    return side if _most is None else min(side, _most)


def set_tiles_in_flight(count: int | None) -> None:
    """Limit how many tiles all calls of this process compute at once.

    Args:
        count: The limit; None (the default at the start) for the largest number of workers that any
            call asks for. It applies to calls that start later, and changes no result.

    Raises:
        UsageError: count is not a positive whole number or None.
    """
    global _most
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(
            f"count is {count!r:.40}; expected a whole number of tiles, at least 1, or None."
        )
    _most = count


def map_tiles(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    count: int | None = None,
) -> Generator[Result, None, None]:
    """function(item) for every item, in order, computed by `workers` threads.

    The caller's thread draws the items, a few ahead. count: number of items, if known; with fewer
    items than workers each gets more compute threads, within torch's number for the caller. The
    first exception ends it, from function, from items, or from the caller by closing the generator;
    what has not started is cancelled.
    """
    side = workers if count is None else max(1, min(workers, count))
    with _share_of_the_workers(side) as share:
        yield from prefetch(share, function, items, side + IN_FLIGHT)


@contextmanager
def one_compute_thread() -> Iterator[None]:
    """Compute in the calling thread, which is not one of ours, as a worker does.

    Setting torch's number of threads also sets it for threads started later (see `_begin`): the
    first to enter stores the number, and each that leaves restores it.
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
        """Register a call that computes `side` tiles at once; returns torch's thread number."""
        with _beginning:
            threads_of_caller = torch.get_num_threads()
            self._begin(side - len(self._threads), threads_of_caller)
            self._calls += 1
        return threads_of_caller

    def leave(self) -> None:
        """Unregister a call. With the last one, the threads end and free their memory."""
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
        """Queue a task."""
        self._tasks.put(task)

    def _begin(self, missing: int, threads_of_caller: int) -> None:
        """Start threads with one torch compute thread each.

        torch keeps the number per thread, and also for threads started later: a worker's own
        setting would apply to every new thread. So the number of the process is restored before
        anything is computed.
        """
        for _ in range(missing):
            begun = threading.Event()
            work = partial(self._work, begun)
            thread = threading.Thread(target=work, name="repmamba-tile", daemon=True)
            thread.start()
            begun.wait()
            self._threads.append(thread)
        if missing > 0:
            torch.set_num_threads(threads_of_caller)

    def _work(self, begun: threading.Event) -> None:
        # the first use of torch in a thread sets its number: get that over with
        torch.get_num_threads()
        torch.set_num_threads(1)
        begun.set()
        while (task := self._tasks.get()) is not None:
            task()


class _Share(Executor):
    """One call's share of the workers: `side` of its tasks at once, the others queued in order."""

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
        """Cancel what has not started, and wait for the rest."""
        for future in self._futures:
            future.cancel()
        wait_for([future for future in self._futures if not future.cancelled()])

    def _compute(self, future: Future[Any], function: Callable[[], Any]) -> None:
        share_passes(self._threads)
        try:
            result = function()
        except BaseException as error:  # raised in the caller's thread
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
_most: int | None = None  # limit of tiles computed at once by all calls


def _forget_workers() -> None:
    """Start afresh in a forked child, which has none of its parent's threads."""
    global _workers, _beginning, _inside
    _workers, _beginning, _inside = _Workers(), threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


@contextmanager
def _share_of_the_workers(side: int) -> Iterator[_Share]:
    """The share of one call; at the end, its tasks that have not started are cancelled."""
    workers = _workers
    share = _Share(workers, side, max(1, min(workers.enter(side), available_cores()) // side))
    try:
        yield share
    finally:
        share.shutdown()
        workers.leave()
