"""Threads of our own that compiled kernels share their work among; torch's would spin on our
cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise


def split_work(work: Callable[[int, int], None], units: int, threads: int) -> None:
    """work(first, last) for all of the units 0 .. units - 1, one share for each thread, the first
    for the calling one.

    Returns when all are done, or raises what a share has raised. One thread means that no other one
    is asked.
    """
    bounds = [units * thread // threads for thread in range(threads + 1)]
    others = [in_another(work, *span) for span in pairwise(bounds[1:])]
    work(*bounds[:2])
    for other in others:
        other.result()


def in_another(work: Callable[..., None], *arguments: int) -> "Future[None]":
    """Have the work done by another thread of this process, when one is free."""
    return _pool(os.getpid()).submit(work, *arguments)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked one does not inherit them and starts its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="repmamba")
