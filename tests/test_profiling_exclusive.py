"""Phases of which one at a time is open, and what a step spends on each."""

from __future__ import annotations

import io
import threading
import time

import pytest

from fastreward.profiling import Report, StepReport, Timeline
from fastreward.profiling.exclusive import ELSEWHERE, ExclusivePhases
from fastreward.profiling.step_table import Extent, step_seconds, step_table


def row(report: Report, name: str) -> tuple[int, float]:
    (found,) = (phase for phase in report.phases if phase.name == name)
    return found.count, found.total_s


def test_an_inner_phase_is_taken_out_of_the_one_around() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    with timeline.step():
        outer = phases.push("outer")
        time.sleep(0.02)
        inner = phases.push("inner", waits=True)
        time.sleep(0.05)
        phases.pop(inner)
        time.sleep(0.02)
        phases.pop(outer)
    report = timeline.report()
    (step,) = report.kept_steps
    assert [phase.kind for phase in report.phases if phase.name == "inner"] == ["wait"]
    assert row(report, "outer")[0] == 2
    assert row(report, "inner")[0] == 1
    assert sum(step.phases.values()) + step.idle_s == pytest.approx(step.wall_s)
    assert step.phases["outer"] >= 0.04
    assert step.phases["inner"] >= 0.05


def test_an_interruption_leaves_the_time_to_others() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    reward = timeline.wrap(lambda completions: time.sleep(0.02), name="judge")
    with timeline.step():
        outer = phases.push("outer")
        place = phases.push(None)
        reward(completions=["a"])
        phases.pop(place)
        phases.pop(outer)
    (step,) = timeline.report().kept_steps
    total = step.phases["outer"] + step.rewards["judge"] + step.idle_s
    assert total == pytest.approx(step.wall_s)


def test_what_was_begun_within_and_not_ended_ends_with_the_one_around() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    outer = phases.push("outer")
    phases.push("forgotten")
    assert phases.holds("outer", "nothing")
    phases.pop(outer)
    assert not phases.holds("outer", "forgotten")
    inner = phases.push("again")
    phases.clear()
    phases.pop(inner)  # it is gone already
    report = timeline.report()
    assert not any(phase.running for phase in report.phases)
    assert row(report, "again")[0] == 1


def test_another_thread_interrupts_nothing() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    places: list[int] = []
    outer = phases.push("outer")
    thread = threading.Thread(target=lambda: places.append(phases.push("theirs")))
    thread.start()
    thread.join()
    phases.pop(places[0])
    assert places == [ELSEWHERE]
    assert phases.holds("outer")
    phases.pop(outer)
    assert [phase.name for phase in timeline.report().phases] == ["outer"]


def test_a_function_in_a_phase_returns_and_raises_as_it_does() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    assert phases.around("parse", int)("7") == 7
    with pytest.raises(ValueError, match="x"):
        phases.around("parse", int)("x")
    assert row(timeline.report(), "parse")[0] == 2
    assert not phases.holds("parse")


def test_errors_of_the_recorder_are_kept_from_the_function() -> None:
    timeline = Timeline()
    phases = ExclusivePhases(timeline)
    timeline._recorder.begin = None  # type: ignore[assignment]
    with pytest.warns(RuntimeWarning, match="keeps from the training"):
        assert phases.around("parse", int)("7") == 7


# --------------------------------------------------------------------------- the latest step


def test_the_latest_step_is_the_one_that_runs_or_else_the_last() -> None:
    timeline = Timeline(keep_steps=2)
    assert timeline.latest_step() is None
    for number in range(5):
        timeline.next_step()
        with timeline.phase("generate"):
            time.sleep(0.002)
        running = timeline.latest_step()
        assert running is not None
        assert (running.number, list(running.phases)) == (number + 1, ["generate"])
    timeline.end_step()
    latest = timeline.latest_step()
    assert isinstance(latest, StepReport)
    assert latest == timeline.report().kept_steps[-1]
    assert latest.wall_s >= running.wall_s


def test_a_reward_that_began_before_the_latest_step_counts_in_it() -> None:
    timeline = Timeline()
    begun, end = threading.Event(), threading.Event()

    def judge(completions: list[str]) -> list[float]:
        begun.set()
        end.wait(10)
        return [1.0]

    with timeline.step():
        thread = threading.Thread(target=timeline.wrap(judge), args=(["a"],))
        thread.start()
        begun.wait(10)
    with timeline.step():
        with timeline.phase("update"):
            time.sleep(0.03)
        latest = timeline.latest_step()
    end.set()
    thread.join()
    assert latest is not None
    assert latest.number == 2
    assert latest.reward_hidden_s >= 0.03


# --------------------------------------------------------------------------- step by step


def test_seconds_of_a_step_are_zero_where_there_is_none_of_it() -> None:
    timeline = Timeline()
    for number in range(3):
        with timeline.step():
            if number == 1:
                with timeline.phase("save"):
                    time.sleep(0.01)
    report = timeline.report()
    first, second, third = step_seconds(report, report.phases[0])
    assert (first, third) == (0.0, 0.0)
    assert second >= 0.01


def test_the_extent_leaves_out_what_is_between_steps() -> None:
    timeline = Timeline()
    for _ in range(2):
        with timeline.step(), timeline.phase("update"):
            time.sleep(0.02)
        time.sleep(0.02)
    report = timeline.report()
    extent = Extent.of(report)
    assert extent is not None
    first, second = report.kept_steps
    assert extent.wall_s == pytest.approx(second.begin_s + second.wall_s - first.begin_s)
    assert extent.in_steps_s == pytest.approx(first.wall_s + second.wall_s)
    assert extent.recorded_s == pytest.approx(extent.in_steps_s, rel=0.1)
    assert extent.recorded_share == pytest.approx(extent.recorded_s / extent.wall_s)
    assert (extent.end_ns - extent.begin_ns) / 1e9 == pytest.approx(extent.wall_s)
    assert Extent.of(Timeline().report()) is None


def test_the_table_has_every_phase_and_reward_and_what_is_missing() -> None:
    from rich.console import Console

    timeline = Timeline()
    with timeline.step(), timeline.phase("generate"):
        timeline.wrap(lambda completions: None, name="judge")(completions=["a"])
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(step_table(timeline.report()))
    shown = console.export_text()
    for text in ("1 step, ", "median a step", "generate", "judge", "1 None", "nothing recorded"):
        assert text in shown
    console.print(step_table(Timeline().report()))
