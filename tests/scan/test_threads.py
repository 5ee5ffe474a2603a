"""Work shared among our own threads."""

import multiprocessing
import sys
import threading

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from repmamba.scan.threads import split_work


@given(units=integers(1, 40), threads=integers(1, 9))
def test_every_unit_is_done_once_the_first_share_in_the_calling_thread(units: int, threads: int):
    done = []
    split_work(
        lambda first, last: done.append((first, last, threading.get_ident())), units, threads
    )
    assert sorted(unit for first, last, _ in done for unit in range(first, last)) == list(
        range(units)
    )
    assert {first for first, last, thread in done if thread == threading.get_ident()} == {0}


def test_an_exception_in_another_thread_reaches_the_caller():
    def work(first: int, last: int) -> None:
        if first:
            raise MemoryError("no scratch")

    with pytest.raises(MemoryError, match="no scratch"):
        split_work(work, 2, 2)


def work_of_a_fork() -> int:
    done = []
    split_work(lambda first, last: done.extend(range(first, last)), 3, 3)
    return sum(done)


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own_and_does_not_wait_for_its_parents():
    assert work_of_a_fork() == 3
    with multiprocessing.get_context("fork").Pool(1) as forked:
        assert forked.apply_async(work_of_a_fork).get(timeout=600) == 3
