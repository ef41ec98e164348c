"""A trainer of sleeps, whose own stamps are the truth, against what the timeline says of it.

The trainer stamps the clock on both sides of each begin and end that the timeline sees: the truth lies
between.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastreward.errors import InputError
from fastreward.profiling import Report, Timeline
from fastreward.profiling.files import EventFile, read_folder
from fastreward.profiling.report import PhaseReport, RewardReport
from fastreward.profiling.spans import Process, Step

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Stamps:
    """What the trainer saw of one call or phase: stamps next to the work, and slack up to the timeline's."""

    name: str
    begin: float
    end: float
    slack: float


@dataclass
class Trainer:
    """Sleeps under a timeline and writes down when."""

    timeline: Timeline
    seen: list[Stamps] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, *, waits: bool = False) -> Iterator[None]:
        before = time.perf_counter()
        with self.timeline.phase(name, waits=waits):
            begin = time.perf_counter()
            yield
            end = time.perf_counter()
        self.note(name, before, begin, end, time.perf_counter())

    def note(self, name: str, before: float, begin: float, end: float, after: float) -> None:
        self.seen.append(Stamps(name, begin, end, (begin - before) + (after - end)))

    def reward(self, name: str, seconds: float) -> Callable[[], None]:
        """A call of a watched reward that sleeps."""
        inner: list[float] = []

        def sleeps(completions: list[str]) -> list[float]:
            inner.append(time.perf_counter())
            time.sleep(seconds)
            inner.append(time.perf_counter())
            return [1.0] * len(completions)

        watched = self.timeline.wrap(sleeps, name=name)

        def call() -> None:
            before = time.perf_counter()
            watched(completions=["a text", "a text", "another"])
            self.note(name, before, *inner[-2:], time.perf_counter())

        return call

    def asynchronous(self, name: str, seconds: float) -> Callable[[], Any]:
        """The same, awaited."""

        async def call() -> None:
            inner: list[float] = []

            async def sleeps(completions: list[str]) -> list[float]:
                inner.append(time.perf_counter())
                await asyncio.sleep(seconds)
                inner.append(time.perf_counter())
                return [1.0] * len(completions)

            before = time.perf_counter()
            await self.timeline.wrap(sleeps, name=name)(completions=["a text"])
            self.note(name, before, *inner, time.perf_counter())

        return call

    def of(self, *names: str) -> list[Stamps]:
        return [one for one in self.seen if one.name in names]

    def seconds(self, name: str) -> float:
        return sum(one.end - one.begin for one in self.of(name))

    def overlap(self, name: str, *others: str) -> float:
        """Seconds of the calls of one name during which one of the others ran; those do not overlap."""
        pairs = ((one, other) for one in self.of(name) for other in self.of(*others))
        return sum(max(0.0, min(a.end, b.end) - max(a.begin, b.begin)) for a, b in pairs)

    def near(self, truth: float) -> Any:
        """Within 5 % or 2 ms, and what lies between the stamps and the timeline's own."""
        slack = sum(one.slack for one in self.seen)
        return pytest.approx(truth, abs=max(0.05 * truth, 2e-3) + slack)


def row(report: Report, name: str) -> PhaseReport:
    (found,) = [row for row in (*report.phases, *report.rewards) if row.name == name]
    return found


def reward_row(report: Report, name: str) -> RewardReport:
    found = row(report, name)
    assert isinstance(found, RewardReport)
    return found


# --------------------------------------------------------------------------- threads


@pytest.fixture(scope="module")
def threads() -> tuple[Trainer, Report, list[tuple[float, float]]]:
    """Three steps; a reward runs in a thread while log-probs are computed, then the trainer waits for it."""
    trainer = Trainer(Timeline(device_clock=None))
    judge, rules = trainer.reward("judge", 0.15), trainer.reward("rules", 0.05)
    steps = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            trainer.timeline.next_step()
            begin = time.perf_counter()
            with trainer.phase("generate"):
                time.sleep(0.06)
            pending = pool.submit(judge)
            with trainer.phase("log-probs"):
                time.sleep(0.07)
            with trainer.phase("reward wait", waits=True):
                pending.result()
            rules()
            time.sleep(0.05)  # nobody marks this
            steps.append((begin, time.perf_counter()))
    trainer.timeline.end_step()
    return trainer, trainer.timeline.report(), steps


def test_threads_every_total_is_the_trainers_own(threads: tuple[Trainer, Report, Any]) -> None:
    trainer, report, _ = threads
    for name in ("generate", "log-probs", "reward wait", "judge", "rules"):
        found = row(report, name)
        assert found.count == 3
        assert found.total_s == trainer.near(trainer.seconds(name))
        durations = sorted(one.end - one.begin for one in trainer.of(name))
        assert found.median_s == trainer.near(durations[1])
        assert found.p90_s == trainer.near(durations[1] + 0.8 * (durations[2] - durations[1]))


def test_threads_what_the_log_probs_cover_is_hidden_and_the_rest_exposed(
    threads: tuple[Trainer, Report, Any],
) -> None:
    trainer, report, _ = threads
    hidden = trainer.overlap("judge", "log-probs", "generate")
    assert hidden > 0.1
    judge, rules = row(report, "judge"), row(report, "rules")
    assert judge.hidden_s == trainer.near(hidden)
    assert judge.exposed_s == trainer.near(trainer.seconds("judge") - hidden)
    assert rules.hidden_s == trainer.near(0.0)
    assert report.reward_hidden_s == trainer.near(hidden)
    assert report.reward_exposed_s == trainer.near(
        trainer.seconds("judge") + trainer.seconds("rules") - hidden
    )


def test_threads_phases_that_nothing_else_covers_are_exposed(threads: tuple[Trainer, Report, Any]) -> None:
    _, report, _ = threads
    for phase in report.phases:
        assert phase.hidden_s == 0.0  # rewards hide nothing
        assert phase.exposed_s == phase.total_s


def test_threads_steps_tails_and_shares_are_the_trainers_own(threads: tuple[Trainer, Report, Any]) -> None:
    trainer, report, steps = threads
    wall = sum(end - begin for begin, end in steps)
    assert report.steps == 3
    assert report.wall_s == trainer.near(wall)
    tails = [
        rules.end - generate.end
        for rules, generate in zip(trainer.of("rules"), trainer.of("generate"), strict=True)
    ]
    assert report.tail_total_s == trainer.near(sum(tails))
    assert report.tail_median_s == trainer.near(sorted(tails)[1])
    assert report.tail_ratio == pytest.approx(report.tail_total_s / report.wall_s)
    assert row(report, "judge").share == pytest.approx(row(report, "judge").total_s / report.wall_s)
    recorded = trainer.seconds("generate") + trainer.seconds("log-probs") + trainer.seconds("reward wait")
    assert report.idle_s == trainer.near(wall - recorded - trainer.seconds("rules"))
    assert [step.number for step in report.kept_steps] == [1, 2, 3]
    for step, (begin, end) in zip(report.kept_steps, steps, strict=True):
        assert step.wall_s == trainer.near(end - begin)


def test_threads_texts_are_counted(threads: tuple[Trainer, Report, Any]) -> None:
    _, report, _ = threads
    for name in ("judge", "rules"):
        found = reward_row(report, name)
        assert (found.texts, found.unique_texts, found.none) == (9, 6, 0)
        assert found.most_in_flight == 1
    assert report.most_in_flight == 1


def test_a_step_that_hides_its_rewards_until_the_next_generation_is_told_so() -> None:
    """One step off: the reward of a step runs while the next step generates."""
    trainer = Trainer(Timeline(device_clock=None))
    judge = trainer.reward("judge", 0.08)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with trainer.timeline.step():
                with trainer.phase("generate"):
                    time.sleep(0.1)
                pending = pool.submit(judge)
        with trainer.phase("reward wait", waits=True):
            pending.result()
    report = trainer.timeline.report()
    hidden = trainer.overlap("judge", "generate")
    assert row(report, "judge").hidden_s == trainer.near(hidden)
    assert hidden > 0.12  # two of three: the last one has nothing to hide behind
    assert row(report, "judge").exposed_s == trainer.near(trainer.seconds("judge") - hidden)


# --------------------------------------------------------------------------- tasks


def test_tasks_rewards_that_overlap_are_counted_each_and_their_exposure_once() -> None:
    trainer = Trainer(Timeline(device_clock=None))
    rewards = [trainer.asynchronous("judge", seconds) for seconds in (0.06, 0.09, 0.12)]

    async def rollout() -> None:
        with trainer.phase("generate"):
            await asyncio.sleep(0.05)

    async def step() -> None:
        with trainer.phase("rewards"):
            await asyncio.gather(*(reward() for reward in rewards), rollout())

    with trainer.timeline.step():
        asyncio.run(step())
    report = trainer.timeline.report()
    judge = reward_row(report, "judge")
    calls, generate = trainer.of("judge"), trainer.of("generate")[0]
    assert judge.total_s == trainer.near(trainer.seconds("judge"))
    assert judge.hidden_s == trainer.near(trainer.overlap("judge", "generate"))  # not under "rewards"
    assert judge.hidden_s > 0.1
    spread = max(call.end for call in calls) - min(call.begin for call in calls)
    covered = min(generate.end, max(call.end for call in calls)) - max(
        generate.begin, min(call.begin for call in calls)
    )
    assert report.reward_hidden_s == trainer.near(covered)
    assert report.reward_exposed_s == trainer.near(spread - covered)
    assert report.tail_total_s == trainer.near(max(call.end for call in calls) - generate.end)
    assert judge.most_in_flight == report.most_in_flight == 3


def test_tasks_a_phase_that_waits_for_its_tasks_hides_none_of_them_in_threads() -> None:
    """`asyncio.to_thread` takes the context along: what it runs is within the phase."""
    trainer = Trainer(Timeline(device_clock=None))
    judge = trainer.reward("judge", 0.06)

    async def step() -> None:
        with trainer.phase("rewards"):
            await asyncio.gather(asyncio.to_thread(judge), asyncio.sleep(0.1))

    asyncio.run(step())
    assert row(trainer.timeline.report(), "judge").hidden_s == 0.0


def test_a_plain_thread_is_within_nothing_and_hidden_by_a_phase_that_does_not_say_that_it_waits() -> None:
    trainer = Trainer(Timeline(device_clock=None))
    judge = trainer.reward("judge", 0.06)
    with ThreadPoolExecutor(1) as pool:
        with trainer.phase("works"):
            pool.submit(judge).result()
        with trainer.phase("works"), trainer.phase("reward wait", waits=True):
            pool.submit(judge).result()
    first, _ = trainer.of("judge")
    assert row(trainer.timeline.report(), "judge").hidden_s == trainer.near(first.end - first.begin)


def test_a_reward_within_a_reward_is_one_in_flight_and_hides_nothing() -> None:
    timeline = Timeline(device_clock=None)
    part = timeline.wrap(lambda completions: [time.sleep(0.02)], name="part")
    whole = timeline.wrap(lambda completions: part(completions), name="whole")
    whole(["a"])
    report = timeline.report()
    assert report.most_in_flight == 1
    assert row(report, "part").hidden_s == row(report, "whole").hidden_s == 0.0
    assert row(report, "part").total_s <= row(report, "whole").total_s


# --------------------------------------------------------------------------- every end


def raises(completions: list[str]) -> None:
    raise ValueError("no such thing")


def interrupted(completions: list[str]) -> None:
    raise KeyboardInterrupt


async def never(completions: list[str]) -> None:
    await asyncio.Event().wait()


def test_a_reward_that_raises_does_so_and_is_counted() -> None:
    timeline = Timeline()
    with pytest.raises(ValueError, match="no such thing"):
        timeline.wrap(raises)(completions=["a"])
    found = reward_row(timeline.report(), "raises")
    assert (found.count, found.raised, found.cancelled, found.hung) == (1, 1, 0, 0)


def test_rewards_of_none_are_counted_by_text() -> None:
    timeline = Timeline()
    timeline.wrap(lambda completions: [None, 1.0, None], name="some")(completions=["a", "b", "c"])
    timeline.wrap(lambda completions: None, name="all")(completions=["a", "b"])
    report = timeline.report()
    assert (reward_row(report, "some").none, reward_row(report, "all").none) == (2, 2)


def test_a_reward_that_is_cancelled_or_interrupted_is_counted() -> None:
    timeline = Timeline()

    async def cancel() -> None:
        task = asyncio.create_task(timeline.wrap(never)(completions=["a"]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    with pytest.raises(KeyboardInterrupt):
        timeline.wrap(interrupted)(completions=["a"])
    report = timeline.report()
    found = reward_row(report, "never")
    assert (found.cancelled, found.raised, found.hung) == (1, 0, 0)
    assert found.total_s > 0.0
    assert reward_row(report, "interrupted").cancelled == 1
    assert report.failures == 0


def test_a_coroutine_that_is_closed_is_cancelled() -> None:
    timeline = Timeline()

    class Pause:
        def __await__(self) -> Iterator[None]:
            yield

    async def pauses(completions: list[str]) -> None:
        await Pause()

    coroutine = timeline.wrap(pauses)(completions=["a"])
    coroutine.send(None)
    coroutine.close()
    assert reward_row(timeline.report(), "pauses").cancelled == 1


def test_a_reward_that_hangs_is_reported_while_it_does_and_as_done_once_it_is() -> None:
    timeline = Timeline(device_clock=None)
    free, stuck = threading.Event(), threading.Event()

    def hangs(completions: list[str]) -> list[float]:
        stuck.set()
        free.wait(30)
        return [1.0]

    begin = time.perf_counter()
    thread = threading.Thread(target=timeline.wrap(hangs), args=(["a"],))
    timeline.next_step()
    thread.start()
    stuck.wait(30)
    started = time.perf_counter()
    with timeline.phase("generate"):
        time.sleep(0.06)
    asked = time.perf_counter()
    middle = timeline.report()
    after = time.perf_counter()
    found = reward_row(middle, "hangs")
    assert (found.count, found.hung, found.running, found.median_s) == (1, 1, 1, None)
    assert asked - started < found.total_s < after - begin
    assert found.hidden_s == pytest.approx(0.06, abs=after - started - 0.06 + 0.003)
    assert middle.tail_ratio is None  # no reward has ended
    free.set()
    thread.join()
    found = reward_row(timeline.report(), "hangs")
    assert (found.count, found.hung, found.raised, found.cancelled) == (1, 0, 0, 0)
    assert found.median_s is not None


def test_every_call_is_accounted_for_whatever_becomes_of_it() -> None:
    timeline = Timeline()
    outcomes = iter([None, ValueError(), asyncio.CancelledError(), KeyboardInterrupt(), None])

    def fickle(completions: list[str]) -> None:
        if (error := next(outcomes)) is not None:
            raise error

    watched = timeline.wrap(fickle)
    for expected in (None, ValueError, asyncio.CancelledError, KeyboardInterrupt, None):
        if expected is None:
            watched(["a"])
        else:
            with pytest.raises(expected):
                watched(["a"])
    found = reward_row(timeline.report(), "fickle")
    assert (found.count, found.raised, found.cancelled, found.hung, found.none) == (5, 1, 2, 0, 2)


# --------------------------------------------------------------------------- steps and memory


def test_without_steps_all_time_is_taken_for_one() -> None:
    timeline = Timeline(device_clock=None)
    with timeline.phase("a"):
        time.sleep(0.05)
    report = timeline.report()
    assert report.steps == 0
    assert row(report, "a").share == pytest.approx(1.0)
    assert report.wall_s == row(report, "a").total_s
    assert report.kept_steps == ()


def test_what_is_outside_of_steps_is_no_part_of_their_shares() -> None:
    timeline = Timeline(device_clock=None)
    with timeline.step(7), timeline.phase("train"):
        time.sleep(0.03)
    with timeline.phase("evaluate"):
        time.sleep(0.05)
    with timeline.step():
        pass
    report = timeline.report()
    assert [step.number for step in report.kept_steps] == [7, 8]
    assert row(report, "evaluate").share == 0.0
    assert row(report, "evaluate").total_s >= 0.05
    assert row(report, "train").share > 0.5


def test_a_step_that_begins_ends_the_one_before_and_not_a_later_one() -> None:
    timeline = Timeline(device_clock=None)
    with timeline.step(1):
        timeline.next_step(2)
    timeline.end_step()
    timeline.end_step()
    report = timeline.report()
    assert [step.number for step in report.kept_steps] == [1, 2]
    assert report.steps == 2


def test_a_long_run_keeps_few_spans_and_all_of_its_sums() -> None:
    timeline = Timeline(keep_steps=3, device_clock=None)
    reward = timeline.wrap(lambda completions: [1.0], name="r")
    for _ in range(500):
        timeline.next_step()
        with timeline.phase("generate"):
            reward(["a", "a"])
    timeline.end_step()
    report = timeline.report()
    assert report.steps == 500
    assert len(report.kept_steps) == 3
    assert len(report.spans) == 6
    assert (reward_row(report, "r").count, reward_row(report, "r").texts) == (500, 1000)
    assert row(report, "generate").count == 500
    assert timeline.report().as_json()["rewards"] == report.as_json()["rewards"]  # a report changes nothing


def test_without_steps_too_few_spans_are_kept() -> None:
    timeline = Timeline(keep_spans=50, device_clock=None)
    for _ in range(1000):
        with timeline.phase("a"):
            pass
    report = timeline.report()
    assert len(report.spans) <= 50
    assert row(report, "a").count == 1000


# --------------------------------------------------------------------------- its own errors


class Unhashable:
    def __hash__(self) -> int:
        raise RuntimeError("not today")


class BrokenClock:
    def record(self) -> tuple[Any, bool] | None:
        raise RuntimeError("no events")

    def reached(self, event: Any) -> bool:
        raise RuntimeError("who knows")

    def seconds(self, first: Any, second: Any) -> float:
        raise RuntimeError("no time")

    def synchronize(self) -> None:
        raise RuntimeError("no waiting")


def test_texts_that_cannot_be_counted_cost_the_count_and_nothing_else() -> None:
    timeline = Timeline()
    reward = timeline.wrap(lambda completions: [1.0], name="r")
    with pytest.warns(RuntimeWarning, match="not today"):
        assert reward([Unhashable()]) == [1.0]
    assert reward([Unhashable()]) == [1.0]  # said once
    report = timeline.report()
    assert report.failures == 2
    assert (reward_row(report, "r").count, reward_row(report, "r").texts) == (2, 0)


@pytest.mark.parametrize("synchronize", [False, True])
def test_a_device_that_fails_stops_no_training(synchronize: bool) -> None:
    timeline = Timeline(device_clock=BrokenClock(), synchronize=synchronize)
    with pytest.warns(RuntimeWarning, match="keeps from the training"):
        assert timeline.wrap(len)(["a"]) == 1
    with timeline.step(), timeline.phase("generate"):
        pass
    report = timeline.report()
    assert report.failures == 1  # it is not asked again
    assert (reward_row(report, "len").count, reward_row(report, "len").hung) == (1, 0)
    assert report.spans[-1].parent is None  # the reward was left, too


def test_a_folder_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    timeline = Timeline(folder=tmp_path / "file")
    assert timeline.wrap(len)(["a"]) == 1
    with pytest.warns(RuntimeWarning, match="keeps from the training"):
        timeline.close()
    assert timeline.report().rewards[0].count == 1


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_its_own_still_stop_nothing() -> None:
    timeline = Timeline(device_clock=BrokenClock())
    assert timeline.wrap(len)(["a"]) == 1
    assert timeline.report().failures >= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: Timeline(keep_steps=0),
        lambda: Timeline(keep_spans=True),
        lambda: Timeline(rank=-1),
        lambda: Timeline(device_clock="gpu"),
        lambda: Timeline(generation="generate"),
        lambda: Timeline().phase(""),
        lambda: Timeline().phase(len),
        lambda: Timeline().next_step(1.5),
        lambda: Timeline().next_step("1"),
        lambda: Timeline().next_step(torch.tensor(1.5)),
        lambda: Timeline().wrap("a model's name"),
        lambda: Timeline.merge("/no/such/folder"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="Expected"):
        call()


# --------------------------------------------------------------------------- processes

PRELUDE = f"""
import contextlib, json, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from fastreward.profiling import Timeline

folder, role = sys.argv[1:3]
stamps = []

def rest(name, seconds, around=contextlib.nullcontext()):
    before = time.perf_counter()
    with around:
        begin = time.perf_counter()
        time.sleep(seconds)
        end = time.perf_counter()
    stamps.append((name, begin, end, (begin - before) + (time.perf_counter() - end)))
"""


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "trainer.py"
    path.write_text(PRELUDE + textwrap.dedent(body))
    return path


def start(path: Path, folder: Path, role: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(path), str(folder), role]
    return subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)


def stamps_of(process: subprocess.Popen[str]) -> Trainer:
    """What the process wrote down; `time.perf_counter` is one clock for all processes of a machine."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return Trainer(Timeline(), [Stamps(*entry) for entry in json.loads(out.splitlines()[-1])])


def test_processes_of_a_rank_share_its_time_and_ranks_do_not(tmp_path: Path) -> None:
    """Two ranks, and a worker of rank 0 that scores while rank 0 updates."""
    path = script(
        tmp_path,
        """
        timeline = Timeline(folder=folder, device_clock=None)

        def judge(completions):
            global inner
            inner = time.perf_counter()
            time.sleep(0.25)
            inner = inner, time.perf_counter()
            return [1.0, None]

        begin = float(os.environ["BEGIN"])
        time.sleep(max(0.0, begin - time.time()))
        if role == "worker":
            time.sleep(0.1)
            before = time.perf_counter()
            timeline.wrap(judge)(completions=["a", "b"])
            after = time.perf_counter()
            stamps.append(("judge", *inner, (inner[0] - before) + (after - inner[1])))
        else:
            with timeline.step():
                rest("generate", 0.15, timeline.phase("generate"))
                rest("update", 0.1 if role == "trainer" else 0.3, timeline.phase("update"))
                rest("wait", 0.15, timeline.phase("wait", waits=True))
        print(json.dumps(stamps))
        """,
    )
    begin = str(time.time() + 2.0)
    processes = {
        role: start(path, tmp_path / "events", role, RANK=rank, BEGIN=begin)
        for role, rank in (("trainer", "0"), ("worker", "0"), ("other", "1"))
    }
    trainers = {role: stamps_of(process) for role, process in processes.items()}
    rank_0 = Trainer(Timeline(), trainers["trainer"].seen + trainers["worker"].seen)
    everyone = Trainer(Timeline(), rank_0.seen + trainers["other"].seen)
    report = Timeline.merge(tmp_path / "events")
    assert [process.rank for process in report.processes] == [0, 0, 1]
    assert report.steps == 2
    hidden = rank_0.overlap("judge", "generate", "update")
    assert hidden > 0.05
    found = reward_row(report, "judge")
    assert (found.count, found.texts, found.none) == (1, 2, 1)
    assert found.total_s == everyone.near(rank_0.seconds("judge"))
    assert found.hidden_s == everyone.near(hidden)
    assert found.exposed_s == everyone.near(rank_0.seconds("judge") - hidden)
    ((judge,), (generate,)) = rank_0.of("judge"), rank_0.of("generate")
    assert report.tail_total_s == everyone.near(max(0.0, judge.end - generate.end))
    for name in ("generate", "update", "wait"):
        assert row(report, name).count == 2
        assert row(report, name).total_s == everyone.near(everyone.seconds(name))
        assert row(report, name).hidden_s == 0.0  # not by the same phase of another rank


def test_a_process_that_is_killed_has_left_what_it_was_doing(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        timeline = Timeline(folder=folder)
        timeline.next_step(41)
        rest("generate", 0.05, timeline.phase("generate"))
        timeline.wrap(lambda completions: time.sleep(60), name="stuck")(["a"])
        """,
    )
    process = start(path, tmp_path / "events", "trainer")
    try:
        deadline = time.monotonic() + 30
        while not any("stuck" in file.read_text() for file in (tmp_path / "events").glob("*.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    (file,) = (tmp_path / "events").glob("*.jsonl")
    with file.open("a") as cut_off:
        cut_off.write('{"event": "span", "id"')
    report = Timeline.merge(tmp_path / "events")
    assert reward_row(report, "stuck").hung == 1
    assert row(report, "generate").total_s >= 0.05
    assert [step.number for step in report.kept_steps] == [41]
    assert report.failures == 1  # the line that was cut off


def test_processes_that_train_one_after_the_other_are_all_in_the_report(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import signal
        timeline = Timeline(folder=folder, device_clock=None)
        for _ in range(int(role)):
            timeline.next_step()
            rest("update", 0.03, timeline.phase("update"))
        if role == "2":  # it is killed at work
            timeline._recorder.begin("phase", "generate")
            timeline._recorder.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        timeline.wrap(lambda completions: rest("judge", 0.05), name="judge")(["a"])
        """,
    )
    codes = []
    for role in ("2", "3"):
        process = start(path, tmp_path / "events", role)
        process.communicate(timeout=60)
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL, 0]
    report = Timeline.merge(tmp_path / "events")
    assert [step.number for step in report.kept_steps] == [1, 2, 1, 2, 3]
    assert row(report, "update").count == 5
    assert (row(report, "generate").count, row(report, "generate").running) == (1, 1)
    assert row(report, "generate").total_s < 0.05  # as long as it was seen to run
    assert reward_row(report, "judge").hidden_s == 0.0  # a process that is gone hides nothing


def test_ctrl_c_leaves_a_whole_file(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        timeline = Timeline(folder=folder)
        def waits(completions):
            print("here", flush=True)
            time.sleep(60)
        with timeline.step(), timeline.phase("rewards"):
            timeline.wrap(waits)(["a"])
        """,
    )
    process = start(path, tmp_path / "events", "trainer")
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    report = Timeline.merge(tmp_path / "events")
    found = reward_row(report, "waits")
    assert (found.count, found.cancelled, found.hung) == (1, 1, 0)
    assert (report.steps, report.failures) == (1, 0)


def test_a_forked_process_records_for_itself(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        timeline = Timeline(folder=folder)
        reward = timeline.wrap(len)
        reward(["in the parent"])
        with timeline.phase("around the fork"):
            child = os.fork()
            if not child:
                with timeline.phase("in the child"):
                    reward(["in the child"])
                timeline.close()
                os._exit(0)
            os.waitpid(child, 0)
        print(json.dumps(stamps))
        """,
    )
    stamps_of(start(path, tmp_path / "events", "trainer"))
    report = Timeline.merge(tmp_path / "events")
    assert len({process.pid for process in report.processes}) == 2
    assert reward_row(report, "len").count == 2
    assert (row(report, "around the fork").count, row(report, "in the child").count) == (1, 1)
    assert report.failures == 0


def test_a_worker_of_multiprocessing_that_is_forked_writes_what_it_did_last(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import multiprocessing
        timeline = Timeline(folder=folder, device_clock=None)
        reward = timeline.wrap(len)

        def work():
            with timeline.step(5):
                reward(["in the worker"])

        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        print(json.dumps(stamps))
        """,
    )
    stamps_of(start(path, tmp_path / "events", "trainer"))
    report = Timeline.merge(tmp_path / "events")
    found = reward_row(report, "len")
    assert (found.count, found.hung) == (1, 0)
    assert [step.number for step in report.kept_steps] == [5]
    assert report.failures == 0


def test_steps_may_be_counted_by_numpy_and_pytorch(tmp_path: Path) -> None:
    timeline = Timeline(folder=tmp_path)
    for number in (np.int64(3), torch.tensor(4), np.array(5)):
        with timeline.step(number), timeline.phase("generate"):
            pass
        timeline._recorder.flush()
    timeline.next_step()
    timeline.close()
    report = Timeline.merge(tmp_path)
    assert [step.number for step in report.kept_steps] == [3, 4, 5, 6]
    assert row(report, "generate").count == 3
    assert timeline.report().failures == 0


def test_an_event_that_no_file_can_hold_costs_no_other(tmp_path: Path) -> None:
    steps = [Step(number, number, number + 1) for number in (1, 2, 3)]
    steps[1].number = object()  # type: ignore[assignment]
    running = Step(object(), 4)  # type: ignore[arg-type]
    file = EventFile(tmp_path, Process(0, 1, "here", 0))
    state = {"until_ns": 9, "overhead_s": 0.0, "failures": 0, "recorded": 0}
    for step in steps:
        file.add(step)
    with pytest.raises(TypeError, match="object is not JSON"):
        file.flush(lambda span: True, [running], state)
    file.add(Step(4, 4, 5))
    file.flush(lambda span: True, [], state, last=True)
    (found,) = read_folder(tmp_path)
    assert [step.number for step in found.steps] == [1, 3, 4]
    assert (found.until_ns, found.broken_lines) == (9, 0)


def test_a_timeline_on_a_cpu_needs_no_torch(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        timeline = Timeline()
        with timeline.step(), timeline.phase("generate"):
            timeline.wrap(len)(["a"])
        report = timeline.report()
        report.as_json(), report.as_table(), report.chrome_trace()
        assert not {"torch", "triton", "transformers", "trl"} & set(sys.modules)
        print(json.dumps(stamps))
        """,
    )
    stamps_of(start(path, tmp_path / "events", "trainer"))


def test_a_timeline_that_is_pickled_records_for_itself_where_it_arrives() -> None:
    timeline = Timeline(generation=["rollout"], rank=3, device_clock=None)
    with timeline.phase("here"):
        pass
    copy = pickle.loads(pickle.dumps(timeline))
    report = copy.report()
    assert report.phases == ()
    assert report.processes[0].rank == 3


# --------------------------------------------------------------------------- which thread it was


def last_thread(timeline: Timeline) -> tuple[int, str]:
    """Number and name of the thread of the last phase."""
    with timeline.phase("here"):
        pass
    span = timeline._recorder._ledger.spans[-1]
    return span.thread, span.thread_name


def test_a_thread_is_reported_by_its_own_number_and_the_name_it_has_then() -> None:
    timeline = Timeline()
    seen: list[tuple[tuple[int, str], int]] = []

    def work() -> None:
        for name in ("before", "after"):
            threading.current_thread().name = name
            seen.append((last_thread(timeline), threading.get_native_id()))

    for _ in range(2):  # the second is likely given the first one's identifier by Python
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    numbers = [number for _, number in seen]
    assert [found for found, _ in seen] == list(zip(numbers, ["before", "after"] * 2, strict=True))
    assert numbers[0] != numbers[2]
    assert last_thread(timeline) == (threading.get_native_id(), threading.current_thread().name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reports_its_own_threads_number() -> None:
    code = """
        import os, threading
        from fastreward.profiling import Timeline
        timeline = Timeline()
        with timeline.phase("here"):
            parents = timeline._recorder._ledger.spans[-1].thread
        child = os.fork()
        if child == 0:
            with timeline.phase("here"):
                found = timeline._recorder._ledger.spans[-1].thread
            os._exit(0 if found == threading.get_native_id() != parents else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_spans_are_settled_as_soon_as_there_are_more_than_are_kept() -> None:
    timeline = Timeline(keep_spans=6)
    for number in range(1, 60):
        with timeline.phase("here"):
            pass
        assert len(timeline._recorder._ledger._coming) <= 6
        assert row(timeline.report(), "here").count == number
