"""Stages of inference, one after the other, each shared among threads that take its shares as they come.

torch's threads are not used: they would wait for their next operation on the cores that the stages compute on. Here
the thread that calls does what is left over if no other comes to help, so calls cannot wait for one another, and
between two stages a thread waits for the shares in work alone. What a share writes does not depend on who takes it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.scan.threads import in_another

LOOKS = 1 << 14
"""At a number before a waiting thread sleeps: some tens of microseconds, which is longer than shares differ by."""

ASLEEP = 5e-5
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A kernel over `units` pieces of work, cut into shares: kernel(first, last, *arguments, scratch)."""

    kernel: Callable[..., None]
    units: int
    shares: int
    arguments: tuple[Any, ...]
    scratch: int  # float32 numbers that a thread needs


def run(stages: Sequence[Stage], kernels: ModuleType, memory: Callable[[int], NDArray[np.float32]]) -> None:
    """All stages in their order, by this thread and others of the process.

    kernels: with the compiled `claimed` and `reached`.  memory: so many numbers of scratch, of the calling thread.
    """
    # Two counters a stage, shares taken and shares done; the last says that a thread has failed.
    counters = np.zeros(2 * len(stages) + 1, np.int64)
    size = max(stage.scratch for stage in stages)

    def take_part() -> None:
        try:
            scratch = memory(size)
            for number, stage in enumerate(stages):
                _share(stage, counters[2 * number :], kernels, scratch)
                while not kernels.reached(counters, 2 * number + 1, stage.shares, LOOKS):
                    if counters[-1]:
                        raise RuntimeError("Another thread of this call has failed.")
                    time.sleep(ASLEEP)
        except BaseException:
            counters[-1] = 1
            raise

    helpers = max(stage.shares for stage in stages) - 1
    others = [in_another(take_part) for _ in range(helpers)]
    try:
        take_part()
    except BaseException as fault:
        wait(others)  # until then they write into what the next call may take
        if isinstance(fault, RuntimeError):
            for other in others:
                other.result()
        raise


def _share(stage: Stage, counters: NDArray[np.int64], kernels: ModuleType, scratch: NDArray[np.float32]) -> None:
    """Compute shares of a stage until all are taken."""
    while (share := kernels.claimed(counters, 0)) < stage.shares:
        first, last = stage.units * share // stage.shares, stage.units * (share + 1) // stage.shares
        stage.kernel(first, last, *stage.arguments, scratch)
        kernels.claimed(counters, 1)
