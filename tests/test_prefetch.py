import threading
import time

import pytest

from fastreward.prefetch import prefetched


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(count):
    assert list(prefetched(range(count), lambda n: -n)) == [-n for n in range(count)]


def test_the_next_one_is_prepared_while_this_one_is_used():
    started = [threading.Event() for _ in range(4)]

    def prepare(number):
        started[number].set()
        return number

    for number in prefetched(range(4), prepare):
        if number < 3:
            assert started[number + 1].wait(timeout=10)
        if number < 2:  # and no other one
            time.sleep(0.01)
            assert not started[number + 2].is_set()


def test_a_single_item_needs_no_thread():
    assert list(prefetched([0], lambda _: threading.current_thread())) == [threading.current_thread()]


def test_an_exception_comes_out_in_its_turn_and_ends_the_work():
    prepared = []

    def prepare(number):
        prepared.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    results = prefetched(range(5), prepare)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert prepared == [0, 1, 2]
    assert list(results) == []


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = prefetched(range(100), lambda number: number)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
