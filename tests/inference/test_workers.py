"""Workers: one compute thread each, results in order, and nothing left behind."""

import threading
import time

import pytest
import torch

from repmamba import load
from repmamba.errors import UsageError
from repmamba.inference import compiled
from repmamba.inference.workers import IN_FLIGHT, choose_workers, side_by_side


@pytest.fixture
def two_threads_of_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads_of_the_caller")
def test_each_worker_computes_with_one_thread_and_the_caller_keeps_its_own():
    counts = list(side_by_side(lambda _: torch.get_num_threads(), range(8), workers=3))
    assert counts == [1] * 8
    assert torch.get_num_threads() == 2
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2]


@pytest.mark.usefixtures("two_threads_of_the_caller")
def test_two_runs_at_once_leave_every_thread_its_number():
    """As in a server with a thread a request: the first ends while the second, begun meanwhile, goes on."""
    second_is_at_work, first_has_ended = threading.Event(), threading.Event()
    seen: dict[str, int] = {}

    def second() -> None:
        seen["begun meanwhile"] = torch.get_num_threads()
        results = side_by_side(lambda item: item, range(8), workers=2)
        next(results)
        second_is_at_work.set()
        assert first_has_ended.wait(10)
        assert len(list(results)) == 7
        seen["and at its end"] = torch.get_num_threads()

    other = threading.Thread(target=second)
    for number, count in enumerate(side_by_side(lambda _: torch.get_num_threads(), range(8), workers=2)):
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
@pytest.mark.parametrize(("workers", "count", "threads"), [(4, 1, 2), (1, 9, 2), (2, 9, 1), (4, 2, 1), (3, 0, None)])
def test_what_cores_the_tiles_leave_go_to_the_passes_of_each(small_weights, monkeypatch, workers, count, threads):
    network, noted = load(small_weights).network, []

    class Noted(compiled.Plan):
        def __init__(self, layers, key):
            noted.append((key[-1], torch.get_num_threads()))
            super().__init__(layers, key)

    def compute(_: int) -> torch.Tensor:
        with torch.inference_mode():
            return network(torch.full((1, 3, 64, 64), 0.4))

    monkeypatch.setattr(compiled, "Plan", Noted)
    results = list(side_by_side(compute, range(count), workers, count))
    assert len(results) == count
    assert set(noted) == ({(threads, 1)} if count else set())


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_whichever_is_ready_first(workers):
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(side_by_side(slow_at_first, range(20), workers)) == [item * item for item in range(20)]


def test_no_more_items_are_drawn_than_workers_need():
    drawn, taken = 0, 0

    def items():
        nonlocal drawn
        for item in range(30):
            drawn += 1
            assert drawn - taken <= 2 + IN_FLIGHT
            yield item

    for _ in side_by_side(lambda item: item, items(), workers=2):
        taken += 1
    assert taken == 30


def test_an_exception_ends_it_and_what_has_not_begun_is_not_computed():
    computed = []

    def fails_at_three(item: int) -> int:
        computed.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(fails_at_three, range(1000), workers=1))
    assert len(computed) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("repmamba-tile")]


def test_a_machine_decides_how_many_and_a_user_may_ask_for_others():
    cpu = torch.device("cpu")
    assert choose_workers(None, cpu) >= 1
    assert choose_workers(7, cpu) == 7
    assert choose_workers(None, torch.device("cuda")) == 1
    with pytest.raises(UsageError, match="at least 1"):
        choose_workers(0, cpu)
