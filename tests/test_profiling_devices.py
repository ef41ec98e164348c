"""Device time: the arithmetic on a device that is simulated, and CUDA where there is a GPU."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.profiling import CudaClock, PhaseReport, Timeline
from fastreward.profiling.devices import DeviceTimer
from fastreward.profiling.spans import Span

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class SimulatedDevice:
    """A queue that a device works off in order, with a clock of its own: another zero, and another pace.

    Args:
        now_s: The host's clock.
        drift: How much faster the device's clock is.
    """

    def __init__(self, now_s: Callable[[], float], drift: float = 0.0) -> None:
        self._now_s = now_s
        self._drift = drift
        self._busy_until = 0.0
        self.waits = 0
        self.in_use = True

    def queue(self, seconds: float) -> None:
        self._busy_until = max(self._busy_until, self._now_s()) + seconds

    def record(self) -> tuple[float, bool] | None:
        """An event is the host's time at which the device comes to it."""
        return (max(self._busy_until, self._now_s()), self.idle()) if self.in_use else None

    def idle(self) -> bool:
        return self._busy_until <= self._now_s()

    def reached(self, event: float) -> bool:
        return event <= self._now_s()

    def seconds(self, first: float, second: float) -> float:
        return (second - first) * (1 + self._drift)

    def wait(self) -> None:
        """What a copy to the host does."""
        while not self.idle():
            time.sleep(max(0.0, self._busy_until - self._now_s()))

    def synchronize(self) -> None:
        self.waits += 1
        self.wait()


@dataclass
class Hand:
    """A clock that is turned by hand."""

    time_s: float = 100.0

    def __call__(self) -> float:
        return self.time_s


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def span_of(timer: DeviceTimer, hand: Hand, work: Callable[[], None]) -> Span:
    """A span as a recorder makes it."""
    begin = timer.mark(ns(hand.time_s))
    span = Span(0, "reward", "r", ns(hand.time_s), 1, "")
    work()
    span.end_ns = ns(hand.time_s)
    span.marks = begin, timer.mark(span.end_ns)
    return span


seconds = st.floats(0.0, 5.0, allow_subnormal=False)


@settings(deadline=None)
@given(
    queued=seconds,
    of_its_own=seconds,
    later_s=seconds,
    waits=st.booleans(),
    drift=st.sampled_from([0.0, 1e-4, -1e-4]),
)
def test_drain_and_device_time_are_those_of_the_queue(
    queued: float, of_its_own: float, later_s: float, waits: bool, drift: float
) -> None:
    hand = Hand()
    device = SimulatedDevice(hand, drift)
    timer = DeviceTimer(device)
    span_of(timer, hand, lambda: None)  # an anchor: nothing is queued yet
    hand.time_s += later_s
    device.queue(queued)
    reached = max(hand.time_s + queued, hand.time_s)
    begin = hand.time_s

    def work() -> None:
        device.queue(of_its_own)
        hand.time_s = max(hand.time_s + 0.5, reached + of_its_own if waits else 0.0)

    span = span_of(timer, hand, work)
    end = hand.time_s
    hand.time_s += 20.0
    assert timer.resolve(span)
    on_device = max(reached + of_its_own, end) - reached
    close = 1e-6 + 2e-4 * (later_s + queued + of_its_own + 1)  # what the clocks drift apart
    assert span.device_s == pytest.approx(on_device, abs=close)
    assert span.drain_s == pytest.approx(min(reached, end) - begin, abs=close)


def test_what_the_device_has_not_come_to_is_left_for_later_and_not_waited_for() -> None:
    hand = Hand()
    device = SimulatedDevice(hand)
    timer = DeviceTimer(device)
    span = span_of(timer, hand, lambda: device.queue(3.0))
    assert not timer.resolve(span)
    assert (span.device_s, span.drain_s, device.waits) == (None, None, 0)
    hand.time_s += 3.0
    assert timer.resolve(span)
    assert span.device_s == pytest.approx(3.0)
    assert span.marks is None  # the events are let go


def test_without_a_moment_at_which_the_queue_was_empty_the_drain_is_not_known() -> None:
    hand = Hand()
    device = SimulatedDevice(hand)
    device.queue(2.0)
    timer = DeviceTimer(device)
    span = span_of(timer, hand, lambda: device.queue(1.0))
    hand.time_s += 10.0
    assert timer.resolve(span)
    assert span.device_s == pytest.approx(1.0)
    assert span.drain_s is None


def test_a_device_that_is_not_in_use_leaves_no_marks() -> None:
    hand = Hand()
    device = SimulatedDevice(hand)
    device.in_use = False
    timer = DeviceTimer(device)
    span = span_of(timer, hand, lambda: None)
    assert timer.resolve(span)
    assert (span.device_s, span.drain_s) == (None, None)


def reward_that_waits(device: SimulatedDevice, begins: list[float]) -> Callable[..., list[float]]:
    def reward(completions: list[str]) -> list[float]:
        begins.append(time.perf_counter())
        device.queue(0.06)
        device.wait()
        begins.append(time.perf_counter())
        return [1.0]

    return reward


def test_a_reward_behind_other_work_is_charged_for_the_drain_apart() -> None:
    device = SimulatedDevice(time.perf_counter)
    timeline = Timeline(device_clock=device)
    stamps: list[float] = []
    reward = timeline.wrap(reward_that_waits(device, stamps))
    before = time.perf_counter()
    with timeline.step():
        with timeline.phase("log-probs"):
            begin = time.perf_counter()
            device.queue(0.1)  # queued, and not waited for
        reward(["a"])
        after = time.perf_counter()
    (found,) = timeline.report().rewards
    assert device.waits == 0
    entered, left = stamps
    reached = begin + 0.1  # when the device comes to what the reward queues
    slack = 2e-3 + (entered - before) + (after - left)  # what lies between the stamps and the timeline's own
    assert found.drain_s == pytest.approx(max(0.0, reached - entered), abs=slack)
    assert found.device_s == pytest.approx(left - max(reached, entered), abs=slack)
    assert found.total_s == pytest.approx(left - entered, abs=slack)
    (phase,) = timeline.report().phases
    assert phase.device_s == pytest.approx(0.1, abs=slack)
    assert phase.drain_s == 0.0


def test_synchronising_gives_each_its_own_work_and_leaves_tasks_alone() -> None:
    device = SimulatedDevice(time.perf_counter)
    timeline = Timeline(device_clock=device, synchronize=True)
    reward = timeline.wrap(reward_that_waits(device, []))
    with timeline.phase("log-probs"):
        device.queue(0.1)
    reward(["a"])
    assert device.waits == 4
    report = timeline.report()
    (phase,), (found,) = report.phases, report.rewards
    assert phase.total_s >= 0.1
    assert found.drain_s is not None
    assert found.drain_s < 0.08  # the phase before has waited for its own
    assert found.total_s >= 0.06

    async def task() -> None:
        with timeline.phase("asynchronous"):
            device.queue(0.0)

    asyncio.run(task())
    assert device.waits == 4
    assert _phase(timeline, "asynchronous").device_s is not None


def _phase(timeline: Timeline, name: str) -> PhaseReport:
    return next(phase for phase in timeline.report().phases if phase.name == name)


def test_where_cuda_is_not_in_use_its_clock_neither_begins_it_nor_waits() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("another test has begun to use CUDA")
    clock = CudaClock()
    assert clock.record() is None
    clock.synchronize()
    assert not torch.cuda.is_initialized()


def test_a_clock_that_is_pickled_asks_for_the_gpu_of_where_it_arrives() -> None:
    own, second = CudaClock(), CudaClock(1)
    for clock in (own, second):
        clock._index = 3  # as it is once CUDA is in use
    assert pickle.loads(pickle.dumps(own))._index is None
    assert pickle.loads(pickle.dumps(second))._device() == 1


# --------------------------------------------------------------------------- on a GPU


@pytest.fixture
def cycles_of_100_ms() -> int:
    """Cycles of `torch.cuda._sleep` that take about 100 ms here."""
    torch.cuda._sleep(1000)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.cuda._sleep(100_000_000)
    end.record()
    torch.cuda.synchronize()
    return round(100_000_000 * 100 / begin.elapsed_time(end))


@needs_cuda
def test_on_cuda_a_drain_is_apart_from_the_rewards_own_time(cycles_of_100_ms: int) -> None:
    timeline = Timeline()
    scores = torch.zeros(1, device="cuda")

    def reward(completions: list[str]) -> list[float]:
        torch.cuda._sleep(cycles_of_100_ms // 2)
        return scores.tolist()

    watched = timeline.wrap(reward)
    for _ in range(3):
        with timeline.step():
            with timeline.phase("log-probs"):
                torch.cuda._sleep(cycles_of_100_ms)
            watched(completions=["a"])
    (found,) = timeline.report().rewards
    assert found.drain_s == pytest.approx(0.3, rel=0.1)
    assert found.device_s == pytest.approx(0.15, rel=0.1)
    assert found.total_s == pytest.approx(0.45, rel=0.1)


@needs_cuda
def test_on_cuda_nothing_is_waited_for(cycles_of_100_ms: int) -> None:
    timeline = Timeline()
    watched = timeline.wrap(lambda completions: torch.cuda._sleep(cycles_of_100_ms), name="r")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(3):
        watched(["a"])
    timeline.report()
    assert time.perf_counter() - begin < 0.1
    torch.cuda.synchronize()
    assert timeline.report().rewards[0].device_s == pytest.approx(0.3, rel=0.1)


@needs_cuda
def test_on_cuda_synchronising_waits(cycles_of_100_ms: int) -> None:
    timeline = Timeline(synchronize=True)
    with timeline.phase("log-probs"):
        torch.cuda._sleep(cycles_of_100_ms)
    assert timeline.report().phases[0].total_s == pytest.approx(0.1, rel=0.1)


@needs_cuda
def test_on_cuda_a_span_within_a_graphs_capture_leaves_the_graph_sound() -> None:
    timeline = Timeline()
    values = torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), timeline.phase("captured"):
        values += 1
    graph.replay()
    assert values.tolist() == [1.0] * 4
    assert timeline.report().failures == 0


@needs_cuda
def test_on_cuda_a_thread_marks_on_the_gpu_of_the_process() -> None:
    timeline = Timeline()
    torch.zeros(1, device="cuda")

    def work() -> None:
        with timeline.phase("in a thread"):
            torch.zeros(8, device="cuda").sum()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert timeline.report().phases[0].device_s is not None
