"""Prefetching: in order, few items in progress, the rest cancelled at the end."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from repmamba.prefetch import prefetch


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(request.param) as pool:
        yield pool


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_results_come_in_the_order_of_their_items(pool, count, most):
    assert list(prefetch(pool, lambda item: item * item, range(count), most)) == [
        item * item for item in range(count)
    ]


def test_the_first_result_is_waited_for_even_if_later_ones_are_finished():
    second_is_done = threading.Event()

    def computed(item: int) -> int:
        if item == 1:
            second_is_done.set()
        assert second_is_done.wait(10)
        return item

    with ThreadPoolExecutor(2) as pool:
        assert list(prefetch(pool, computed, range(2), 2)) == [0, 1]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_than_most_are_in_progress(pool, most):
    drawn, taken = 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(30):
            drawn += 1
            assert drawn - taken <= most
            yield item

    for _ in prefetch(pool, lambda item: item, items(), most):
        assert drawn - taken == min(most, 30 - taken)
        taken += 1
    assert taken == 30


def test_items_are_drawn_by_the_thread_that_takes_the_results(pool):
    def items() -> Iterator[str]:
        for _ in range(5):
            yield threading.current_thread().name

    assert set(prefetch(pool, lambda name: name, items(), 2)) == {threading.current_thread().name}


@pytest.mark.parametrize("fault", ["function", "items", "caller"])
def test_when_it_ends_the_rest_is_cancelled(fault):
    computed: list[int] = []
    ended = threading.Event()

    def compute(item: int) -> int:
        computed.append(item)
        if item == 1:  # holds the only thread until the rest is cancelled
            assert ended.wait(10)
        if item == 0 and fault == "function":
            raise ValueError("function")
        return item

    def items() -> Iterator[int]:
        yield from range(4)
        raise ValueError("items")

    with ThreadPoolExecutor(1) as pool:
        results = prefetch(pool, compute, items() if fault == "items" else range(9), 4)
        if fault == "caller":
            with closing(results):
                assert next(results) == 0
        else:
            with pytest.raises(ValueError, match=fault):
                list(results)
        ended.set()
        assert pool.submit(lambda: "open").result() == "open"
    assert set(computed) <= {0, 1}
