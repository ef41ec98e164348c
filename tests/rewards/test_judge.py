import asyncio
import contextlib
import copy
import functools
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fastreward.errors import InputError
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.format import FormatReward
from fastreward.rewards.judge import JudgeCounts, JudgeReward


def length(text: str) -> float:
    return float(len(text))


async def length_async(text: str) -> float:
    await asyncio.sleep(0.001)
    return float(len(text))


class Length:
    def __call__(self, text: str) -> float:
        return float(len(text))


class LengthAsync:
    async def __call__(self, text: str) -> float:
        await asyncio.sleep(0)
        return float(len(text))


def length_by_coroutine(text: str) -> object:
    return length_async(text)


JUDGES = [
    length,
    length_async,
    Length(),
    LengthAsync(),
    functools.partial(length),
    functools.partial(length_async),
    len,
    length_by_coroutine,
]


class Gauge:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = self.total = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1


class Flaky:
    """Fails for each text as often as it is told to."""

    def __init__(self, failures: int, error: Exception | None = None, value: object = 1.0) -> None:
        self.left: dict[str, int] = {}
        self.failures, self.error, self.value = failures, error or ValueError("not now"), value
        self.times: list[float] = []

    def __call__(self, text: str) -> object:
        self.times.append(time.monotonic())
        left = self.left.setdefault(text, self.failures)
        self.left[text] = left - 1
        if left > 0:
            raise self.error
        return self.value


def quick(judge: object, **options: object) -> JudgeReward:
    return JudgeReward(judge, **{"backoff_s": 0.0, **options})


@pytest.fixture
def release():
    """An event on which judges hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("judge", JUDGES)
def test_what_the_judge_says_is_the_reward(judge):
    texts = ["a" * n for n in range(1, 40)]
    rewards = JudgeReward(judge)(completions=texts)
    assert rewards == [float(n) for n in range(1, 40)]
    assert {type(value) for value in rewards} == {float}


@pytest.mark.parametrize("judge", JUDGES)
def test_it_works_within_a_running_event_loop_and_by_ascore(judge):
    reward = JudgeReward(judge)

    async def main() -> tuple[list[float | None], list[float | None]]:
        return reward(completions=["a", "bb"]), await reward.ascore(completions=["a", "bb"])

    assert asyncio.run(main()) == ([1.0, 2.0], [1.0, 2.0])


def test_the_event_loop_stays_free_while_ascore_runs():
    ticked = threading.Event()

    def judge(text: str) -> float:
        return float(ticked.wait(timeout=30))  # only the event loop sets it

    async def main() -> list[float | None]:
        task = asyncio.create_task(JudgeReward(judge).ascore(completions=["a"]))
        await asyncio.sleep(0.01)
        ticked.set()
        return await task

    assert asyncio.run(main()) == [1.0]


@pytest.mark.parametrize(
    ("value", "reward"),
    [(1, 1.0), (True, 1.0), ("0.5", 0.5), (np.float32(0.25), 0.25), (torch.tensor(0.75), 0.75), (-3.0, -3.0)],
)
def test_whatever_float_takes_is_a_number(value, reward):
    assert JudgeReward(lambda text: value)(completions=["a"]) == [reward]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "good", [1.0], {}, 1j, torch.ones(2), object()]
)
def test_what_is_no_finite_number_gives_none_and_is_told_once(value):
    reward = quick(lambda text: value)
    with pytest.warns(
        RuntimeWarning, match=r"judge_reward: the judge failed \(no .*number.*said once"
    ) as caught:
        assert reward(completions=["a", "b"]) == [None, None]
    assert len(caught) == 1
    assert reward.counts == JudgeCounts(samples=2, scored=2, failed=2)


def test_a_judge_that_will_not_decide_is_not_asked_again():
    asked = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward = quick(lambda text: asked.append(text))
        assert reward(completions=["a", "b"]) == [None, None]
    assert sorted(asked) == ["a", "b"]
    assert reward.counts == JudgeCounts(samples=2, scored=2, undecided=2)


@pytest.mark.parametrize("error", [ValueError("not now"), TimeoutError(), SystemExit(1), StopIteration()])
def test_what_fails_is_tried_again_and_then_gives_none(error):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quick(Flaky(2, error), retries=2)(completions=["a", "b"]) == [1.0, 1.0]
    reward = quick(Flaky(3, error), retries=2)
    with pytest.warns(RuntimeWarning, match=type(error).__name__):
        assert reward(completions=["a"]) == [None]
    assert reward.counts == JudgeCounts(samples=1, scored=1, failed=1)


def test_an_asynchronous_judge_is_tried_again_too():
    flaky = Flaky(1)

    async def judge(text: str) -> object:
        await asyncio.sleep(0)
        return flaky(text)

    assert quick(judge, retries=1)(completions=["a", "b"]) == [1.0, 1.0]
    flaky.left.clear()
    with pytest.warns(RuntimeWarning, match="ValueError: not now"):
        assert quick(judge, retries=0)(completions=["a", "b"]) == [None, None]


@pytest.mark.parametrize("exit_by", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_an_asynchronous_judge_that_gives_up_does_not_take_the_loop_with_it(exit_by):
    async def judge(text: str) -> float:
        if text == "bad":
            raise exit_by
        return 1.0

    reward = quick(judge, retries=0)
    with pytest.warns(RuntimeWarning, match=exit_by.__name__):
        assert reward(completions=["bad", "good"]) == [None, 1.0]
    assert reward(completions=["good"]) == [1.0]


def test_it_waits_twice_as_long_before_each_further_time():
    flaky = Flaky(3)
    assert JudgeReward(flaky, retries=3, backoff_s=0.05)(completions=["a"]) == [1.0]
    gaps = np.diff(flaky.times)
    assert all(gaps >= np.array([0.05, 0.1, 0.2]) - 1e-3)


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_without_a_message_to_show_keeps_no_place(asynchronous):
    def judge(text: str) -> float:
        raise MuteError

    async def judge_async(text: str) -> float:
        raise MuteError

    reward = quick(judge_async if asynchronous else judge, timeout_s=30, retries=0, max_concurrency=1)
    with pytest.warns(RuntimeWarning, match="MuteError: a message that raises ValueError"):
        assert reward(completions=["a", "b"]) == [None, None]


def test_each_kind_of_failure_is_told_once_over_calls():
    def judge(text: str) -> float:
        raise {"k": KeyError, "v": ValueError}[text]("no")

    reward = quick(judge, retries=0, name="referee")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert reward(completions=["k", "v", "k"]) == [None] * 3
    assert len(caught) == 2
    assert {w.filename for w in caught} == {__file__}
    assert {"KeyError" in str(w.message) for w in caught} == {True, False}
    assert all(str(w.message).startswith("referee: ") for w in caught)
    assert reward.counts.failed == 9


# --------------------------------------------------------------------------- time-outs and places


def test_a_judge_that_hangs_does_not_hang_the_call(release):
    def judge(text: str) -> float:
        if text == "hang":
            release.wait()
        return 1.0

    reward = quick(judge, timeout_s=0.5, retries=0)
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match="time-out: no verdict within 0.5 s"):
        assert reward(completions=["hang", "a", "b"]) == [None, 1.0, 1.0]
    assert time.monotonic() - start < 5
    assert reward(completions=["a", "b"]) == [1.0, 1.0]


def test_an_asynchronous_judge_that_hangs_is_cancelled_and_its_place_free_again():
    cancelled = []

    async def judge(text: str) -> float:
        try:
            await asyncio.sleep(60 if text == "hang" else 0)
        except asyncio.CancelledError:
            cancelled.append(text)
            raise
        return 1.0

    reward = quick(judge, timeout_s=0.5, retries=0, max_concurrency=1)
    with pytest.warns(RuntimeWarning, match="time-out"):
        assert reward(completions=["hang", "a", "hang", "b"]) == [None, 1.0, None, 1.0]
    assert cancelled == ["hang", "hang"]


def test_an_asynchronous_judge_that_blocks_its_loop_or_ignores_its_end_does_not_hang_the_call(release):
    async def blocking(text: str) -> float:
        release.wait()
        return 1.0

    async def stubborn(text: str) -> float:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return 1.0

    for judge in (blocking, stubborn):
        reward = quick(judge, timeout_s=0.1, retries=0, max_concurrency=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert reward(completions=["a", "b", "c"]) == [None] * 3
        assert any("no place: 2 runs of the judge" in str(warning.message) for warning in caught)


def test_places_lost_to_a_blocked_loop_come_back():
    gate = threading.Event()

    async def judge(text: str) -> float:
        if text == "block":
            gate.wait()  # the loop can start no other task meanwhile
        return 1.0

    reward = quick(judge, timeout_s=0.5, retries=0, max_concurrency=2)
    with pytest.warns(RuntimeWarning):
        assert reward(completions=["block", "a"]) == [None, None]
    gate.set()
    for _ in range(3):
        assert reward(completions=["a"] * 4) == [1.0] * 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_more_than_the_limit_run_at_once_over_calls_and_time_outs(asynchronous):
    gauge = Gauge()

    def judge(text: str) -> float:
        with gauge:
            time.sleep(0.7 if text == "slow" else 0.002)
        return 1.0

    async def judge_async(text: str) -> float:
        with gauge:
            await asyncio.sleep(0.002)
        return 1.0

    reward = quick(judge_async if asynchronous else judge, timeout_s=0.5, retries=1, max_concurrency=3)
    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = [pool.submit(reward, completions=["slow", *"abcdefgh"]) for _ in range(4)]
        results = [call.result(timeout=60) for call in calls]
    assert gauge.most <= 3
    assert gauge.total >= 36
    assert all(rewards[1:] == [1.0] * 8 for rewards in results)
    assert [rewards[0] for rewards in results] == [1.0 if asynchronous else None] * 4


def test_as_many_as_the_limit_do_run_at_once():
    together = threading.Barrier(4)

    def judge(text: str) -> float:
        together.wait(timeout=30)
        return 1.0

    assert JudgeReward(judge, max_concurrency=4, retries=0)(completions=["a"] * 8) == [1.0] * 8


def test_when_every_place_is_lost_the_rest_is_given_up_and_nothing_more_is_started(release):
    gauge = Gauge()

    def judge(text: str) -> float:
        with gauge:
            release.wait()
        return 1.0

    reward = quick(judge, timeout_s=0.5, retries=2, max_concurrency=2)
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match="no place: 2 runs of the judge have timed out and not ended"):
        assert reward(completions=["a"] * 20) == [None] * 20
    assert time.monotonic() - start < 5
    assert gauge.total == 2
    assert reward.counts == JudgeCounts(samples=20, scored=20, failed=20)
    release.set()  # the judge comes back, and so do its places
    assert reward(completions=["a"] * 4) == [1.0] * 4


def test_a_judge_that_hangs_does_not_keep_the_process_alive():
    code = (
        "import threading, warnings\n"
        "from fastreward.rewards.judge import JudgeReward\n"
        "warnings.simplefilter('ignore')\n"
        "reward = JudgeReward(lambda text: threading.Event().wait(), timeout_s=0.1, retries=0)\n"
        "print(reward(completions=['a']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[None]"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_forked_process_has_its_places_whatever_its_parents_judge_is_doing(release, asynchronous):
    def judge(text: str) -> float:
        if text == "hang":
            release.wait()
        return 1.0

    async def judge_async(text: str) -> float:
        return judge(text)

    reward = quick(judge_async if asynchronous else judge, timeout_s=5, retries=0, max_concurrency=1)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(reward, completions=["hang"])
        while reward._desk._taken == 0:
            time.sleep(0.001)
        fork = multiprocessing.get_context("fork")
        results = fork.SimpleQueue()
        child = fork.Process(target=lambda: results.put(reward(completions=["a", "b"])), daemon=True)
        with reward._desk._changed:  # as where a thread of the parent is just taking a place
            child.start()
        child.join(timeout=4)  # less than the judge's own time-out: nobody waits for the parent's places
        alive = child.is_alive()
        child.kill()
        release.set()
        assert call.result(timeout=30) == [1.0]
    assert not alive
    assert results.get() == [1.0, 1.0]


def test_failures_are_told_at_the_callers_own_line_within_a_combination_too():
    both = CombinedReward([quick(Flaky(1), retries=0), FormatReward("a")], weights=[1.0, 1.0])
    with pytest.warns(RuntimeWarning, match="the judge failed") as caught:
        both(completions=["a"])
    assert [warning.filename for warning in caught] == [__file__]


# --------------------------------------------------------------------------- what the judge gets


def test_the_judge_gets_the_columns_that_it_asks_for():
    got = []

    def judge(text, reference, *, prompt, hint="none", completion_ids=None):
        got.append((text, reference, prompt, hint, completion_ids))
        return 1.0

    JudgeReward(judge, reference="explanation", max_concurrency=1)(
        completions=["<think>Hm.</think> a", [{"role": "assistant", "content": "b"}]],
        prompts=["why?", [{"role": "user", "content": "how?"}]],
        explanation=["so", ["so", "or so"]],
        completion_ids=[[1], [2]],
        other=["x", "y"],
        trainer_state=object(),
    )
    assert got == [
        ("a", "so", "why?", "none", [1]),
        ("b", ["so", "or so"], [{"role": "user", "content": "how?"}], "none", [2]),
    ]


def test_a_judge_that_takes_all_gets_every_column_with_an_entry_per_sample():
    got = {}

    def judge(text, **columns):
        got.update(columns)
        return 1.0

    columns = {"prompts": ["why?"], "answer": ("B",), "array": np.array([7]), "text": ["the text's own name"]}
    others = {
        "log_metric": lambda *_: None,
        "trainer_state": object(),
        "environments": None,
        "seed": "7",
        "two": [1, 2],
    }
    JudgeReward(judge)(completions=["a"], **columns, **others)
    assert got == {"prompts": "why?", "answer": "B", "array": 7}


def test_a_sample_without_a_reference_is_not_judged():
    asked = []

    def judge(text, reference):
        asked.append(text)
        return 1.0

    reward = JudgeReward(judge, reference="explanation")
    rewards = reward(completions=["a", "b", "c", ""], explanation=["x", None, " ", "x"])
    assert (rewards, asked) == ([1.0, None, None, 0.0], ["a"])
    assert reward.counts == JudgeCounts(samples=4, scored=1, missing_reference=2, no_text=1)


def test_without_a_reference_to_ask_for_every_text_is_judged():
    logged = []
    reward = JudgeReward(len, no_text="none")
    assert reward(completions=["a", " "], log_metric=lambda *pair: logged.append(pair)) == [1.0, None]
    assert reward(completions=[]) == []
    names = ("no_text", "missing_reference", "undecided", "failed")
    assert logged == [(f"judge_reward/{name}_ratio", 0.5 if name == "no_text" else 0.0) for name in names]


def test_a_column_that_is_needed_and_absent_or_of_another_length_is_an_error():
    reward = JudgeReward(lambda text, hint: 1.0)
    with pytest.raises(InputError, match="'hint'") as caught:
        reward(completions=["a"], prompts=["why?"])
    assert caught.value.received == "the columns ['prompts']"
    with pytest.raises(InputError, match="1 completions and 2 entries in 'hint'"):
        reward(completions=["a"], hint=["x", "y"])


@pytest.mark.parametrize(
    "options",
    [
        {"judge": 7},
        {"judge": lambda: 1.0},
        {"judge": lambda *, text: 1.0},
        {"judge": lambda **columns: 1.0},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"timeout_s": "30"},
        {"backoff_s": -1},
        {"backoff_s": float("nan")},
        {"retries": -1},
        {"retries": 1.5},
        {"max_concurrency": 0},
        {"max_concurrency": True},
        {"reference": 7},
        {"no_text": "skip"},
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        JudgeReward(**{"judge": len, **options})


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
@pytest.mark.parametrize("judge", [length, length_async, LengthAsync()])
def test_a_copy_judges_alike_with_places_and_counts_of_its_own(judge, copied):
    reward = JudgeReward(judge, timeout_s=5, retries=1, max_concurrency=2, name="referee")
    assert reward(completions=["a", "bb"]) == [1.0, 2.0]
    twin = copied(reward)
    assert twin.__name__ == "referee"
    assert twin.counts == JudgeCounts()
    assert twin(completions=["a", "bb"]) == [1.0, 2.0]
    assert twin._desk is not reward._desk


def test_the_repr_shows_the_configuration():
    assert repr(JudgeReward(len)) == (
        "JudgeReward(<built-in function len>, reference=None, timeout_s=30.0, retries=2, backoff_s=0.5, "
        "max_concurrency=8, extract=None, strip_thinking=True, no_text='zero', name='judge_reward')"
    )
