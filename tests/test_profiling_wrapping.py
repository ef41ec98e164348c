"""A watched reward is the same reward to whoever calls it, and is read without being disturbed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import inspect
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastreward.profiling import Report, RewardReport, Timeline, stage
from fastreward.profiling.counting import count_none, count_texts, text_finder
from fastreward.profiling.spans import Counts, Span
from fastreward.profiling.stages import current_span
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.semantic import SemanticReward
from fastreward.scorer import Scorer


def brief(completions: list[str], limit: int = 3, **columns: object) -> list[float]:
    """Whether a text is short."""
    return [float(len(text) < limit) for text in completions]


async def awaited(completions: list[str], **columns: object) -> list[float]:
    await asyncio.sleep(0)
    return [1.0] * len(completions)


class Judge:
    """A reward without a name, with attributes."""

    weight = 2.0

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def __call__(self, completions: list[str], **columns: object) -> list[float]:
        return [self.bias] * len(completions)


class AsyncJudge(Judge):
    async def __call__(self, completions: list[str], **columns: object) -> list[float]:  # type: ignore[override]
        return [self.bias] * len(completions)


def only(report: Report) -> RewardReport:
    (found,) = report.rewards
    return found


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (brief, "brief"),
        (functools.partial(brief, limit=5), "brief"),
        (Judge(), "Judge"),
        (Judge().__call__, "__call__"),
        (awaited, "awaited"),
        (functools.partial(awaited), "awaited"),
        (AsyncJudge(), "AsyncJudge"),
        (len, "len"),
    ],
)
def test_a_watched_reward_keeps_its_name_its_signature_and_how_it_is_called(
    reward: Callable[..., Any], name: str
) -> None:
    timeline = Timeline()
    watched = timeline.wrap(reward)
    assert watched.__name__ == name
    assert watched.__doc__ == reward.__doc__
    if reward is not len:
        assert inspect.signature(watched) == inspect.signature(reward)
    # As TRL asks: of the object, and of its call.
    unwrapped = reward.func if isinstance(reward, functools.partial) else reward
    is_awaited = inspect.iscoroutinefunction(unwrapped) or inspect.iscoroutinefunction(unwrapped.__call__)
    assert (
        inspect.iscoroutinefunction(watched) or inspect.iscoroutinefunction(watched.__call__)
    ) == is_awaited
    texts = ["a text", "b"]
    result, expected = watched(texts), reward(texts)
    if is_awaited:
        result, expected = asyncio.run(_await(result)), asyncio.run(_await(expected))
    assert result == expected
    found = only(timeline.report())
    assert (found.name, found.count, found.texts) == (name, 1, 2)


async def _await(coroutine: Any) -> Any:
    return await coroutine


def test_attributes_are_those_of_the_reward() -> None:
    watched = Timeline().wrap(Judge(0.5))
    assert (watched.bias, watched.weight) == (0.5, 2.0)
    with pytest.raises(AttributeError, match="nothing"):
        _ = watched.nothing
    assert not hasattr(watched, "__array__")  # what numpy and others ask for is not passed on
    assert "Judge" in repr(watched)


@pytest.mark.parametrize("reward", [brief, awaited, Judge(0.5), Judge])
def test_it_pickles_to_the_reward_itself(reward: Callable[..., Any]) -> None:
    arrived = pickle.loads(pickle.dumps(Timeline().wrap(reward)))
    assert type(arrived) is type(reward)
    assert inspect.isclass(reward) or inspect.isfunction(reward) or arrived.bias == 0.5


def test_what_is_set_on_it_is_set_on_the_reward() -> None:
    reward = Judge()
    twice = Timeline().wrap(Timeline().wrap(reward))
    twice.bias = 3.0
    assert (reward.bias, twice.bias, twice(["a"])) == (3.0, 3.0, [3.0])


def test_a_class_makes_watched_instances() -> None:
    timeline = Timeline()
    watched = timeline.wrap(Judge)
    assert (watched.__name__, watched.weight) == ("Judge", 2.0)
    judge = watched(bias=0.25)
    assert judge(completions=["a"]) == [0.25]
    assert only(timeline.report()).name == "Judge"


def test_it_decorates_functions_and_methods() -> None:
    timeline = Timeline()

    class Environment:
        bonus = 2.0

        @timeline.wrap
        def reward(self, completions: list[str]) -> list[float]:
            return [self.bonus for _ in completions]

    assert Environment().reward(["a"]) == [2.0]
    assert only(timeline.report()).texts == 1


def test_the_arguments_arrive_as_they_were() -> None:
    got: list[Any] = []

    def reward(*args: object, **kwargs: object) -> None:
        got.append((args, kwargs))

    Timeline().wrap(reward)(1, [2], self=3, completions=["a"], call=4)
    assert got == [((1, [2]), {"self": 3, "completions": ["a"], "call": 4})]


def test_an_exception_passes_as_it_is_and_shows_its_own_place() -> None:
    error = ValueError("mine")

    def reward(completions: list[str]) -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        Timeline().wrap(reward)(["a"])
    assert caught.value is error
    assert caught.traceback[-1].name == "reward"


def test_a_coroutine_of_a_plain_function_counts_until_it_is_done() -> None:
    timeline = Timeline(device_clock=None)

    async def sleeps() -> list[float]:
        await asyncio.sleep(0.05)
        return [1.0, None]  # type: ignore[list-item]

    watched = timeline.wrap(lambda completions: sleeps(), name="r")
    assert asyncio.run(_await(watched(completions=["a", "b"]))) == [1.0, None]
    found = only(timeline.report())
    assert found.total_s >= 0.049
    assert (found.count, found.none, found.hung) == (1, 1, 0)


@pytest.mark.parametrize("dropped_by", ["a task", "its holder"])
def test_a_coroutine_that_is_dropped_before_its_first_step_is_cancelled_and_never_begun(
    dropped_by: str,
) -> None:
    timeline = Timeline(device_clock=None)

    async def sleeps() -> list[float]:
        await asyncio.sleep(30)
        return [1.0]

    watched = timeline.wrap(lambda completions: sleeps(), name="r")

    async def cancel() -> None:
        task = asyncio.create_task(watched(completions=["a"]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if dropped_by == "a task":
            asyncio.run(cancel())
        else:
            watched(completions=["a"]).close()
        gc.collect()
    assert [str(one.message) for one in said] == []  # as of a reward that nobody watches
    report = timeline.report()
    found = only(report)
    assert (found.count, found.cancelled, found.hung) == (1, 1, 0)
    assert report.failures == 0


def test_a_call_that_has_ended_counts_nothing_twice(tiny_folder: Path) -> None:
    timeline = Timeline()
    reward = SemanticReward(Scorer(tiny_folder, device="cpu"))
    watched = timeline.wrap(reward)
    texts = {"completions": ["the heart"], "reference": ["blood"]}
    call = watched.recorder.begin_call(watched, (), texts)
    scores = reward(**texts)
    for _ in range(2):
        watched.recorder.end_call(call, scores, None)
    assert only(timeline.report()).tokens == reward.scorer.stats.tokens > 0


def test_a_coroutine_that_is_abandoned_midway_is_freed_and_counts_as_cancelled() -> None:
    timeline = Timeline(device_clock=None)

    class Pause:
        def __await__(self) -> Any:
            yield None

    async def pauses(waiting: list[object]) -> list[float]:
        await Pause()
        return [float(len(waiting))]

    def abandon() -> None:
        waiting: list[object] = []  # as what a task waits for knows the task
        rest = timeline.wrap(lambda completions: pauses(waiting), name="r")(completions=["a"])
        rest.send(None)
        waiting.append(rest)

    abandon()
    gc.collect()
    found = only(timeline.report())
    assert (found.count, found.cancelled, found.hung) == (1, 1, 0)


@pytest.mark.parametrize("fate", ["done", "raised", "cancelled"])
def test_a_future_counts_until_it_is_done(fate: str) -> None:
    timeline = Timeline(device_clock=None)
    future: concurrent.futures.Future[list[float]] = concurrent.futures.Future()
    assert timeline.wrap(lambda completions: future, name="r")(["a"]) is future
    assert only(timeline.report()).hung == 1
    with timeline.phase("goes on"):  # outside of the call, which has left this thread
        pass
    if fate == "cancelled":
        future.cancel()
    elif fate == "raised":
        future.set_exception(ValueError())
    else:
        future.set_result([1.0])
    report = timeline.report()
    found = only(report)
    assert (found.hung, found.raised, found.cancelled) == (0, fate == "raised", fate == "cancelled")
    assert found.hidden_s > 0.0
    assert report.failures == 0


def test_two_timelines_can_watch_one_reward() -> None:
    inner, outer = Timeline(), Timeline()
    watched = outer.wrap(inner.wrap(brief))
    with outer.phase("rewards"), inner.phase("rewards"):
        watched(completions=["a"])
    for timeline in (inner, outer):
        assert only(timeline.report()).hidden_s == 0.0
        assert only(timeline.report()).count == 1


# --------------------------------------------------------------------------- counting

CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    {"role": "assistant", "content": "so"},
]


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        ([], (0, 0)),
        ("one", (1, 1)),
        (["a", "b", "a"], (3, 2)),
        (("a", "a"), (2, 1)),
        ([CONVERSATION, [*CONVERSATION], CONVERSATION[:1]], (3, 2)),
        ([[1, 2], [1, 2], [1]], (3, 2)),
        (None, (0, 0)),
        (iter(["a"]), (0, 0)),  # to count it would be to use it up
        (3, (0, 0)),
    ],
)
def test_texts_are_counted_in_every_form_that_trainers_use(texts: object, counts: tuple[int, int]) -> None:
    assert count_texts(texts) == counts


def test_none_is_counted_and_nothing_else_is() -> None:
    assert count_none([None, 0.0, float("nan"), False], 4) == 1
    assert count_none(None, 0) == 1
    assert count_none(3.5, 1) == 0


@pytest.mark.parametrize(
    ("reward", "argument", "args", "kwargs", "found"),
    [
        (brief, None, (["a"],), {}, ["a"]),
        (brief, None, (), {"completions": ["a"]}, ["a"]),
        (lambda prompts, completions: 0, None, (["p"], ["c"]), {}, ["c"]),
        (lambda data_source, solution_str, ground_truth: 0, None, ("d", "s", "g"), {}, "s"),
        (lambda queries, prompts: 0, None, (["q"], ["p"]), {}, ["q"]),
        (lambda queries, prompts: 0, "prompts", (["q"], ["p"]), {}, ["p"]),
        (lambda **columns: 0, "replies", (), {"replies": ["r"], "completions": ["c"]}, ["r"]),
        (lambda **columns: 0, "replies", (), {"completions": ["c"]}, None),
        (lambda **columns: 0, None, (), {}, None),
        (max, None, ([3],), {}, [3]),
    ],
)
def test_the_texts_are_found_among_the_arguments_of_the_known_trainers(
    reward: Callable[..., Any],
    argument: str | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: object,
) -> None:
    assert text_finder(reward, argument)(*args, **kwargs) == found


def test_what_a_scorer_counts_is_charged_to_the_call(tiny_folder: Path) -> None:
    timeline = Timeline()
    reward = SemanticReward(Scorer(tiny_folder, device="cpu"))
    watched = timeline.wrap(reward)
    texts = {"completions": ["the heart", "the heart", "blood"], "reference": ["pumps", "pumps", "body"]}
    reward(**texts)  # not watched: none of the timeline's
    before = reward.scorer.stats
    for _ in range(2):
        assert watched(**texts) == reward(**texts)
    spent = reward.scorer.stats - before
    found = only(timeline.report())
    assert found.tokens is not None
    assert 2 * found.tokens == spent.tokens > 0
    assert (found.texts, found.unique_texts, found.encoded_texts) == (6, 4, 4)
    assert (found.cache_hits, found.cache_misses) == (4, 0)
    assert found.hit_rate == 0.5  # the references, and not the texts


def test_a_scorer_that_is_built_at_the_first_call_is_built_by_the_call_alone(tiny_folder: Path) -> None:
    timeline = Timeline()
    reward = SemanticReward(tiny_folder)
    watched = timeline.wrap(reward)
    assert reward._scorer is None
    watched(completions=["the heart"], reference=["blood"])
    found = only(timeline.report())
    assert found.tokens == reward.scorer.stats.tokens > 0
    assert found.cache_misses == 1


def test_the_scorers_of_a_combination_are_counted_once(tiny_folder: Path) -> None:
    timeline = Timeline()
    scorer = Scorer(tiny_folder, device="cpu")
    parts = [SemanticReward(scorer, name="one"), SemanticReward(scorer, name="two"), brief]
    combined = CombinedReward([timeline.wrap(part) for part in parts], name="whole")
    timeline.wrap(combined)(completions=["the heart", "blood"], reference=["body", "body"])
    rows = {found.name: found for found in timeline.report().rewards}
    assert set(rows) == {"one", "two", "brief", "whole"}
    assert rows["whole"].tokens == scorer.stats.tokens
    assert rows["one"].tokens + rows["two"].tokens == scorer.stats.tokens  # type: ignore[operator]
    assert rows["brief"].tokens is None


def test_ascore_is_watched_like_a_call(tiny_folder: Path) -> None:
    timeline = Timeline()
    watched = timeline.wrap(SemanticReward(Scorer(tiny_folder, device="cpu")))
    asyncio.run(_await(watched.ascore(completions=["the heart"], reference=["blood"])))
    found = only(timeline.report())
    assert (found.name, found.count, found.texts) == ("semantic_reward", 1, 1)
    assert found.tokens


# --------------------------------------------------------------------------- stages


def test_stages_split_a_call_also_over_threads_that_work_for_it() -> None:
    timeline = Timeline(device_clock=None)

    def tokenise() -> None:
        with stage("tokenise"):
            time.sleep(0.05)

    def reward(completions: list[str]) -> list[float]:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(tokenise,))
        thread.start()
        with stage("wait"):
            thread.join()
        with stage("encode"):
            time.sleep(0.02)
        with stage("encode"):
            time.sleep(0.02)
        return [1.0]

    watched = timeline.wrap(reward)
    watched(["a"])
    watched(["a"])
    found = only(timeline.report())
    assert set(found.stages) == {"tokenise", "wait", "encode"}
    assert found.stages["tokenise"] >= 0.1
    assert found.stages["encode"] >= 0.08
    assert found.stages["wait"] + found.stages["encode"] <= found.total_s


class SlowToRead(dict[str, float]):
    """Lets other threads run between the reading of a sum and the writing of it."""

    def get(self, key: str, default: float = 0.0) -> float:  # type: ignore[override]
        value = super().get(key, default)
        time.sleep(0.001)
        return value


def test_stages_of_many_threads_at_once_lose_nothing() -> None:
    span = Span(0, "reward", "r", 0, 1, "", counts=Counts(stages=SlowToRead()))
    within: list[float] = []

    def many() -> None:
        for _ in range(10):
            with stage("s"):
                begin = time.perf_counter()
                time.sleep(0.002)
                within.append(time.perf_counter() - begin)

    token = current_span.set(span)
    with ThreadPoolExecutor(8) as pool:
        contexts = [contextvars.copy_context() for _ in range(8)]
        for work in [pool.submit(context.run, many) for context in contexts]:
            work.result()
    current_span.reset(token)
    assert len(within) == 80
    assert span.counts.stages["s"] >= sum(within)


def test_a_stage_outside_of_any_call_does_nothing_and_lets_exceptions_pass() -> None:
    with pytest.raises(ValueError, match="mine"), stage("tokenise"):
        raise ValueError("mine")


# --------------------------------------------------------------------------- what watching costs


def test_watching_a_call_takes_a_bounded_number_of_operations() -> None:
    """A time would depend on the machine: `benchmarks/bench_profiling.py` measures it."""
    watched = Timeline().wrap(brief)
    texts = [f"text {number}" for number in range(64)]
    watched(completions=texts)
    calls: dict[str, int] = {"call": 0, "c_call": 0}

    def count(frame: object, event: str, argument: object) -> None:
        if event in calls:
            calls[event] += 1

    def counted(reward: Callable[..., Any]) -> int:
        calls.update(call=0, c_call=0)
        sys.setprofile(count)
        try:
            reward(completions=texts)
        finally:
            sys.setprofile(None)
        return sum(calls.values())

    assert counted(watched) - counted(brief) < 200


# --------------------------------------------------------------------------- the stages of our own scorer

STAGES = {"tokenise", "copy", "encode", "wait", "score"}


def test_a_scorer_says_how_its_time_is_split(tiny_folder: Path) -> None:
    timeline = Timeline()
    watched = timeline.wrap(SemanticReward(Scorer(tiny_folder, device="cpu")))
    # Long enough for chunks, of which a thread prepares the next one.
    texts = [f"the heart pumps blood {number} " * 40 for number in range(120)]
    watched(completions=texts, reference=["blood"] * len(texts))
    found = only(timeline.report())
    assert set(found.stages) == STAGES
    assert all(seconds > 0 for seconds in found.stages.values())
    on_the_callers_thread = sum(found.stages[name] for name in ("encode", "wait", "score"))
    assert on_the_callers_thread <= found.total_s


def test_replicas_work_for_the_call_that_they_are_asked_by(tiny_folder: Path) -> None:
    timeline = Timeline()
    watched = timeline.wrap(SemanticReward(Scorer(tiny_folder, device=["cpu", "cpu"])))
    texts = [f"the heart pumps blood {number} " * 40 for number in range(120)]
    watched(completions=texts, reference=["blood"] * len(texts))
    assert {"tokenise", "copy", "encode"} <= set(only(timeline.report()).stages)


def test_calls_at_once_on_one_scorer_keep_their_stages_apart(tiny_folder: Path) -> None:
    timeline = Timeline()
    scorer = Scorer(tiny_folder, device="cpu")
    names = [f"reward {number}" for number in range(4)]
    rewards = [timeline.wrap(SemanticReward(scorer), name=name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(reward, completions=[f"{number} heart"] * 2, reference=["blood"] * 2)
            for number, reward in enumerate(rewards)
        ]
        for call in calls:
            call.result()
    rows = timeline.report().rewards
    assert len(rows) == 4
    assert all({"tokenise", "encode"} <= set(found.stages) for found in rows)
    assert all(found.stages["encode"] <= found.total_s for found in rows)
