"""Workers: one compute thread each, results in order, nothing left running."""

import os
import threading
import time

import pytest
import torch

from repmamba import load
from repmamba.errors import UsageError
from repmamba.inference import compiled_runner
from repmamba.inference.workers import IN_FLIGHT, choose_workers, map_tiles, set_tiles_in_flight


@pytest.fixture
def two_threads_of_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads_of_the_caller")
def test_each_worker_computes_with_one_thread_and_the_caller_keeps_its_own():
    counts = list(map_tiles(lambda _: torch.get_num_threads(), range(8), workers=3))
    assert counts == [1] * 8
    assert torch.get_num_threads() == 2
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2]


@pytest.mark.usefixtures("two_threads_of_the_caller")
def test_two_calls_at_once_do_not_change_thread_numbers():
    """As in a server with a thread a request: the first ends while the second, begun meanwhile,
    goes on.
    """
    second_is_at_work, first_has_ended = threading.Event(), threading.Event()
    seen: dict[str, int] = {}

    def second() -> None:
        seen["begun meanwhile"] = torch.get_num_threads()
        results = map_tiles(lambda item: item, range(8), workers=2)
        next(results)
        second_is_at_work.set()
        assert first_has_ended.wait(10)
        assert len(list(results)) == 7
        seen["and at its end"] = torch.get_num_threads()

    other = threading.Thread(target=second)
    for number, count in enumerate(
        map_tiles(lambda _: torch.get_num_threads(), range(8), workers=2)
    ):
        assert count == 1
        if number == 0:
            other.start()
            assert second_is_at_work.wait(10)
    first_has_ended.set()
    other.join()
    later = threading.Thread(target=lambda: seen.update(later=torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == {"begun meanwhile": 2, "and at its end": 2, "later": 2}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads_of_the_caller")
@pytest.mark.parametrize(
    ("workers", "count", "threads"), [(4, 1, 2), (1, 9, 2), (2, 9, 1), (4, 2, 1), (3, 0, None)]
)
def test_spare_cores_are_shared_by_the_passes_of_each_tile(
    small_weights, monkeypatch, workers, count, threads
):
    network, noted = load(small_weights).network, []

    class Noted(compiled_runner.PassPlan):
        def __init__(self, layers, key):
            noted.append((key[-1], torch.get_num_threads()))
            super().__init__(layers, key)

    def compute(_: int) -> torch.Tensor:
        with torch.inference_mode():
            return network(torch.full((1, 3, 64, 64), 0.4))

    monkeypatch.setattr(compiled_runner, "PassPlan", Noted)
    results = list(map_tiles(compute, range(count), workers, count))
    assert len(results) == count
    assert set(noted) == ({(threads, 1)} if count else set())


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(map_tiles(slow_at_first, range(20), workers)) == [item * item for item in range(20)]


def test_no_more_items_are_drawn_than_workers_need():
    drawn, taken = 0, 0

    def items():
        nonlocal drawn
        for item in range(30):
            drawn += 1
            assert drawn - taken <= 2 + IN_FLIGHT
            yield item

    for _ in map_tiles(lambda item: item, items(), workers=2):
        taken += 1
    assert taken == 30


def test_an_exception_ends_it_and_cancels_the_rest():
    computed = []

    def fails_at_three(item: int) -> int:
        computed.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_tiles(fails_at_three, range(1000), workers=1))
    assert len(computed) < 10
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("repmamba-tile")
    ]


def test_the_default_number_of_workers_is_that_of_the_cores():
    cpu = torch.device("cpu")
    assert choose_workers(None, cpu) >= 1
    assert choose_workers(7, cpu) == 7
    assert choose_workers(None, torch.device("cuda")) == 1
    with pytest.raises(UsageError, match="at least 1"):
        choose_workers(0, cpu)


def at_once(calls, workers):
    """How many items of so many calls, each with so many workers, are computed at the same moment
    at most.
    """
    guard, now, most = threading.Lock(), 0, 0

    def compute(item: int) -> int:
        nonlocal now, most
        with guard:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with guard:
            now -= 1
        return item

    results = []
    callers = [
        threading.Thread(target=lambda: results.append(list(map_tiles(compute, range(6), workers))))
        for _ in range(calls)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [list(range(6))] * calls
    return most


def test_calls_in_several_threads_share_one_set_of_workers():
    assert at_once(calls=5, workers=2) == 2
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("repmamba-tile")
    ]


def test_a_call_never_uses_more_workers_than_it_asked_for():
    release, seen, begun = threading.Event(), [], threading.Event()

    def of_three(item: int) -> int:
        begun.set()
        release.wait(10)
        return item

    wide = threading.Thread(target=lambda: list(map_tiles(of_three, range(3), workers=3)))
    wide.start()
    assert begun.wait(10)
    narrow = threading.Thread(target=lambda: seen.append(at_once(calls=1, workers=1)))
    narrow.start()
    time.sleep(0.05)
    release.set()
    wide.join()
    narrow.join()
    assert seen == [1]


def test_tiles_in_flight_of_all_calls_can_be_limited():
    cpu = torch.device("cpu")
    set_tiles_in_flight(1)
    try:
        assert choose_workers(None, cpu) == choose_workers(4, cpu) == 1
        assert at_once(calls=3, workers=choose_workers(4, cpu)) == 1
    finally:
        set_tiles_in_flight(None)
    assert choose_workers(4, cpu) == 4
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="at least 1, or None"):
            set_tiles_in_flight(wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_process_forked_while_workers_compute_gets_its_own_workers():
    results = map_tiles(lambda item: item, range(4), workers=2)
    assert next(results) == 0
    child = os.fork()
    if child == 0:
        os._exit(
            0 if list(map_tiles(lambda item: 2 * item, range(3), workers=2)) == [0, 2, 4] else 1
        )
    assert list(results) == [1, 2, 3]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
