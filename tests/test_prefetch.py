import contextvars
import os
import sys
import threading
import time
from contextlib import closing

import pytest

from fastreward.prefetch import TURN_S, prefetched


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_items_come_in_their_order(count):
    assert list(prefetched(-n for n in range(count))) == [-n for n in range(count)]


def test_two_are_made_while_one_is_used_and_no_more():
    started = [threading.Event() for _ in range(6)]

    def make():
        for number, event in enumerate(started):
            event.set()
            yield number

    for number in prefetched(make()):
        for ahead in started[number + 1 : number + 3]:
            assert ahead.wait(timeout=10)
        time.sleep(0.01)
        assert not any(event.is_set() for event in started[number + 3 :])


def test_the_thread_works_in_the_callers_context():
    variable = contextvars.ContextVar("variable", default="elsewhere")
    variable.set("here")
    assert list(prefetched(variable.get() for _ in range(2))) == ["here", "here"]


def test_an_exception_comes_out_in_its_turn_and_ends_the_work():
    def make():
        yield 0
        yield 1
        raise ValueError("two")

    results = prefetched(make())
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert list(results) == []


def test_who_stops_early_leaves_no_thread_behind_and_the_generator_closed():
    before = threading.active_count()
    closed = []

    def make():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    results = prefetched(make())
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
    assert closed == [True]


@pytest.fixture
def switch_interval():
    before = sys.getswitchinterval()
    yield before
    sys.setswitchinterval(before)


def test_threads_take_short_turns_while_items_are_made_and_long_ones_again_behind_the_last_user(
    switch_interval,
):
    with closing(prefetched(iter_of(3))) as first:
        next(first)
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        with closing(prefetched(iter_of(3))) as second:
            next(second)
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
    assert sys.getswitchinterval() == switch_interval


def test_turns_that_are_shorter_already_stay_as_they_are(switch_interval):
    sys.setswitchinterval(TURN_S / 10)
    for _ in prefetched(iter_of(2)):
        assert sys.getswitchinterval() == pytest.approx(TURN_S / 10)
    assert sys.getswitchinterval() == pytest.approx(TURN_S / 10)


def test_turns_that_the_caller_sets_meanwhile_stay(switch_interval):
    for _ in prefetched(iter_of(2)):
        sys.setswitchinterval(0.03)
    assert sys.getswitchinterval() == pytest.approx(0.03)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_takes_long_turns_whoever_was_within(switch_interval):
    with closing(prefetched(iter_of(3))) as items:
        next(items)
        child = os.fork()
        if child == 0:
            os._exit(0 if sys.getswitchinterval() == switch_interval else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sys.getswitchinterval() == pytest.approx(TURN_S)


def iter_of(count):
    yield from range(count)
