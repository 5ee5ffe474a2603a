"""Threads for the compiled kernels; torch's own would spin on the cores afterwards."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise


def split_work(work: Callable[[int, int], None], units: int, threads: int) -> None:
    """Call work(first, last) for the units 0 .. units - 1, one share per thread.

    The calling thread takes the first share. Returns when all are done; raises what a share raised.
    """
    bounds = [units * thread // threads for thread in range(threads + 1)]
    others = [in_another(work, *span) for span in pairwise(bounds[1:])]
    work(*bounds[:2])
    for other in others:
        other.result()


def in_another(work: Callable[..., None], *arguments: int) -> "Future[None]":
    """Run the work in another thread of this process, when one is free."""
    return _pool(os.getpid()).submit(work, *arguments)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked one starts its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="repmamba")
