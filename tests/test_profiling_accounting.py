"""What is hidden, against a slow and plain reading of the definition, tick by tick."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.profiling.accounting import FEW_RELATIVES, Stretch, account
from fastreward.profiling.intervals import (
    Coverage,
    Lanes,
    difference,
    levels,
    measure,
    union,
    where_level,
)
from fastreward.profiling.ledger import Ledger, Totals
from fastreward.profiling.spans import KINDS, Span, Step

END = 40


@dataclass(frozen=True)
class Drawn:
    """A span as it is drawn: its parent is one of those before it, if that is still open."""

    kind: str
    begin: int
    length: int | None
    lane: int
    parent: int


drawn_spans = st.lists(
    st.builds(
        Drawn,
        kind=st.sampled_from(KINDS),
        begin=st.integers(0, END - 1),
        length=st.one_of(st.none(), st.integers(1, 20)),
        lane=st.integers(0, 3),
        parent=st.integers(-6, 20),
    ),
    max_size=18,
)


def spans_of(drawn: list[Drawn]) -> list[Span]:
    spans: list[Span] = []
    for number, one in enumerate(sorted(drawn, key=lambda one: one.begin)):
        end = None if one.length is None else one.begin + one.length
        parent = spans[one.parent] if 0 <= one.parent < number else None
        if parent is not None and parent.end_ns is not None and parent.end_ns <= one.begin:
            parent = None
        spans.append(
            Span(
                number,
                one.kind,
                f"{one.kind}{number % 3}",
                one.begin,
                thread=one.lane % 2,
                thread_name="",
                task=one.lane // 2,
                parent=parent,
                end_ns=end,
                outcome="running" if end is None else "done",
            )
        )
    return spans


def runs(span: Span, tick: int) -> bool:
    return span.begin_ns <= tick and (span.end_ns is None or tick < span.end_ns)


def around(span: Span) -> Iterator[Span]:
    while span.parent is not None:
        span = span.parent
        yield span


def works(phase: Span, tick: int, spans: list[Span]) -> bool:
    """Whether a phase works: it runs, and nothing within it in its own thread and task waits."""
    if phase.kind != "phase" or not runs(phase, tick):
        return False
    for wait in spans:
        if wait.kind != "wait" or not runs(wait, tick):
            continue
        for outer in around(wait):
            if (outer.thread, outer.task) != (wait.thread, wait.task):
                break
            if outer is phase:
                return False
    return True


def is_hidden(span: Span, tick: int, spans: list[Span]) -> bool:
    return any(
        works(phase, tick, spans)
        and phase is not span
        and phase not in around(span)
        and span not in around(phase)
        for phase in spans
    )


@settings(max_examples=300, deadline=None)
@given(drawn_spans)
def test_times_are_those_of_the_definition_read_tick_by_tick(drawn: list[Drawn]) -> None:
    spans = spans_of(drawn)
    found = account(0, END, spans, ())
    expected: dict[tuple[str, str], list[int]] = {}
    exposed = hidden = idle = 0
    for tick in range(END):
        running = [span for span in spans if runs(span, tick)]
        for span in running:
            sums = expected.setdefault((span.kind, span.name), [0, 0])
            sums[0] += 1
            sums[1] += is_hidden(span, tick, spans)
        rewards = [is_hidden(span, tick, spans) for span in running if span.kind == "reward"]
        exposed += bool(rewards) and not all(rewards)
        hidden += bool(rewards) and all(rewards)
        idle += not running
    assert {key: [s.wall_ns, s.hidden_ns] for key, s in found.by_key.items()} == expected
    assert (found.reward_exposed_ns, found.reward_hidden_ns, found.idle_ns) == (exposed, hidden, idle)


@settings(max_examples=150, deadline=None)
@given(drawn_spans)
def test_the_most_at_once_is_counted_by_name_and_for_those_within_no_reward(drawn: list[Drawn]) -> None:
    spans = [span for span in spans_of(drawn) if span.kind == "reward"]
    outer = [span for span in spans if not any(one.kind == "reward" for one in around(span))]
    most: dict[str, int] = {}
    for tick in range(END):
        for name in ["", *(span.name for span in spans)]:
            group = outer if name == "" else [span for span in spans if span.name == name]
            most[name] = max(most.get(name, 0), sum(runs(span, tick) for span in group))
    most = {name: count for name, count in most.items() if count}
    assert account(0, END, spans, ()).in_flight == most


@settings(max_examples=150, deadline=None)
@given(drawn_spans, st.lists(st.integers(1, END - 1), max_size=5), st.lists(st.integers(0, END), max_size=6))
def test_settling_bit_by_bit_comes_to_the_same_as_all_at_once(
    drawn: list[Drawn], cuts: list[int], marks: list[int]
) -> None:
    def settled(times: list[int]) -> Totals:
        totals = Totals()
        ledger = Ledger(["phase0"], totals)
        begins = sorted(set(marks))
        for number, begin in enumerate(begins):
            later = [*begins[number + 1 :], None]
            ledger.add_step(Step(number, begin, later[0]))
        for span in spans_of(drawn):
            ledger.add_span(span)
        for time in [*sorted(set(times)), END]:
            ledger.settle(time)
        return totals

    at_once, bit_by_bit = settled([]), settled(cuts)
    sums = ("steps", "in_steps_ns", "outside_ns", "idle_in_steps_ns", "idle_outside_ns", "in_flight")
    for name in (*sums, "reward_exposed_ns", "reward_hidden_ns"):
        assert getattr(bit_by_bit, name) == getattr(at_once, name), name
    assert bit_by_bit.tallies.keys() == at_once.tallies.keys()
    for key, tally in at_once.tallies.items():
        other = bit_by_bit.tallies[key]
        for name in ("begun", "ended", "wall_ns", "wall_in_steps_ns", "hidden_ns", "in_flight"):
            assert getattr(other, name) == getattr(tally, name), (key, name)
        assert sorted(other.durations_s) == sorted(tally.durations_s)


def test_a_container_of_many_tasks_is_hidden_by_none_of_them() -> None:
    container = Span(0, "phase", "rollout", 0, 1, "", end_ns=100, outcome="done")
    tasks = [
        Span(n, "phase", "generate", n, 1, "", task=n, parent=container, end_ns=n + 20, outcome="done")
        for n in range(1, 4 * FEW_RELATIVES)
    ]
    beside = Span(99, "phase", "other", 90, 2, "", end_ns=95, outcome="done")
    found = account(0, 100, [container, *tasks, beside], ())
    assert found.by_key["phase", "rollout"].hidden_ns == 5  # under the other one alone
    covered = [sum(n <= tick < n + 20 for n in range(1, 4 * FEW_RELATIVES)) for tick in range(100)]
    assert found.by_key["phase", "generate"].hidden_ns == sum(count for count in covered if count > 1)


@pytest.mark.parametrize(
    ("reward_end", "generation_end", "tail"), [(30, 20, 10), (20, 30, 0), (30, None, None), (None, 20, None)]
)
def test_the_tail_is_from_the_last_generation_to_the_last_reward(
    reward_end: int | None, generation_end: int | None, tail: int | None
) -> None:
    spans = [
        Span(0, "phase", "generate", 1, 1, "", end_ns=generation_end),
        Span(1, "reward", "r", 2, 2, "", end_ns=reward_end),
        Span(2, "phase", "update", 3, 1, "", end_ns=35),
    ]
    assert account(0, 40, spans, ["generate"]).tail_ns == tail


def test_the_tail_goes_by_what_began_in_the_step() -> None:
    carried = Span(0, "reward", "r", 1, 2, "", end_ns=18)
    spans = [
        carried,
        Span(1, "phase", "generate", 11, 1, "", end_ns=15),
        Span(2, "reward", "r", 12, 2, "", end_ns=17),
    ]
    assert account(10, 20, spans, ["generate"]).tail_ns == 2


def test_steps_and_what_is_between_them_fill_the_time_without_a_gap() -> None:
    ledger = Ledger((), Totals())
    for number, (begin, end) in enumerate([(5, 10), (10, 12), (20, 22), (30, None)]):
        ledger.add_step(Step(number, begin, end))
    ledger.add_span(Span(0, "phase", "a", 2, 1, "", end_ns=24))
    stretches: list[Stretch] = ledger.settle(40)
    windows = [(s.begin_ns, s.end_ns, None if s.step is None else s.step.number) for s in stretches]
    assert windows == [
        (2, 5, None),
        (5, 10, 0),
        (10, 12, 1),
        (12, 20, None),
        (20, 22, 2),
        (22, 30, None),
        (30, 40, 3),
    ]


intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12)


def ticks(parts: list[tuple[int, int]]) -> set[int]:
    return {tick for begin, end in parts for tick in range(begin, end)}


@given(intervals, intervals, st.integers(-2, 32), st.integers(-2, 32))
def test_sets_of_times_are_sets(
    first: list[tuple[int, int]], second: list[tuple[int, int]], a: int, b: int
) -> None:
    joined, taken = union(first), union(second)
    assert ticks(joined) == ticks(first)
    assert all(left[1] < right[0] for left, right in pairwise(joined))
    assert ticks(difference(joined, taken)) == ticks(first) - ticks(second)
    assert measure(joined) == len(ticks(first))
    low, high = min(a, b), max(a, b)
    inside = {tick for tick in ticks(first) if low <= tick < high}
    assert ticks(list(Coverage(joined).parts(low, high))) == inside


@given(intervals)
def test_lanes_hold_side_by_side_what_overlaps_without_being_within(parts: list[tuple[int, int]]) -> None:
    ordered = sorted((part for part in parts if part[0] < part[1]), key=lambda part: (part[0], -part[1]))
    lanes = Lanes()
    placed = [(lanes.place(*part), part) for part in ordered]
    for place, ((lane, depth), (begin, end)) in enumerate(placed):
        before = [[other for (where, _), other in placed[:place] if where == one] for one in range(lane + 1)]
        around = [other for other in before[lane] if other[1] > begin]
        assert all(other[1] >= end for other in around)
        assert depth == len(around)
        assert all(any(begin < other[1] < end for other in others) for others in before[:lane])


@given(intervals, st.integers(1, 4))
def test_heights_count_the_intervals_over_each_time(parts: list[tuple[int, int]], least: int) -> None:
    over = [sum(begin <= tick < end for begin, end in parts) for tick in range(31)]
    found = ticks(where_level(levels(parts), least))
    assert found == {tick for tick, count in enumerate(over) if count >= least}


def test_the_work_to_account_for_a_step_grows_little_faster_than_its_calls() -> None:
    """Calls of functions are counted, for time says little on a busy machine."""

    def work(count: int) -> int:
        rng = random.Random(0)
        spans = [Span(0, "phase", "rollout", 0, 1, "", end_ns=10_000, outcome="done")]
        for number in range(1, count):
            begin, kind = rng.randrange(9_000), ("phase", "reward")[number % 2]
            spans.append(Span(number, kind, kind, begin, 1, "", number, spans[0], end_ns=begin + 500))
        calls = 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count_call)
        try:
            account(0, 10_000, spans, ())
        finally:
            sys.setprofile(None)
        return calls

    assert work(2000) < 15 * work(200)
