"""What holds a step back: each rule speaks from its bound on, with the right numbers, and not before."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from fastreward.profiling import Report, Timeline
from fastreward.profiling.advice import MOST_SENTENCES, advice

MS = 1_000_000
BEGAN = 1_700_000_000_000_000_000


class Run:
    """A run whose times, in milliseconds, are known: written as the timelines of its ranks write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: dict[int, list[dict[str, Any]]] = {}
        self.overhead_s = 0.0

    def span(self, name: str, begin: float, end: float | None, *, rank: int = 0, **more: Any) -> Run:
        """Add a span; `more` are fields of it or of its counts."""
        counts = {"texts": 0, "unique_texts": 0, "none": 0, "scorer": {}, "stages": {}}
        counts |= {key: more.pop(key) for key in list(more) if key in counts}
        entry = {"event": "span", "id": len(self._of(rank)), "parent_id": None, "kind": "phase", "name": name}
        entry |= {"thread": 1, "thread_name": "MainThread", "task": None, "device_s": None, "drain_s": None}
        entry |= {"outcome": "running" if end is None else "done", "counts": counts}
        entry |= {"begin_ns": BEGAN + round(begin * MS)}
        entry |= {"end_ns": None if end is None else BEGAN + round(end * MS)} | more
        self._of(rank).append(entry)
        return self

    def reward(self, name: str, begin: float, end: float | None, **more: Any) -> Run:
        """Add a call of a reward, in a thread of its own."""
        return self.span(name, begin, end, kind="reward", **{"thread": zlib.crc32(name.encode()) + 2, **more})

    def step(self, number: int, begin: float, end: float, rank: int = 0) -> Run:
        times = {"begin_ns": BEGAN + round(begin * MS), "end_ns": BEGAN + round(end * MS)}
        self._of(rank).append({"event": "step", "number": number} | times)
        return self

    def report(self) -> Report:
        for rank, lines in self.lines.items():
            head = {
                "event": "process",
                "version": 1,
                "rank": rank,
                "pid": 7,
                "host": "node",
                "began_ns": BEGAN,
            }
            spans = [line for line in lines if line["event"] == "span"]
            running = [line for line in spans if line["end_ns"] is None]
            last = max(line["end_ns"] or 0 for line in lines)
            state = {"event": "state", "running": running, "until_ns": last, "failures": 0}
            state |= {"overhead_s": self.overhead_s, "recorded": len(spans)}
            kept = [line for line in lines if line not in running]
            path = self.folder / f"rank{rank}.timeline.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in [head, *kept, state]))
        return Timeline.merge(self.folder)

    def _of(self, rank: int) -> list[dict[str, Any]]:
        return self.lines.setdefault(rank, [])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def has(sentences: list[str], beginning: str) -> str:
    """The one sentence that begins so."""
    found = [sentence for sentence in sentences if sentence.startswith(beginning)]
    assert len(found) == 1, sentences
    return found[0]


def speaks(sentences: list[str], word: str) -> bool:
    return any(word in sentence for sentence in sentences)


def test_a_reward_that_is_waited_for_says_what_it_costs_and_what_can_be_gained(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 100).span("generate", at, at + 60).reward("judge", at + 60, at + 100)
    assert advice(run.report()) == [
        "Rewards hold up the step for 40 % of it: 40.0 ms a step. If they took no time, the step would be "
        "1.67 times as fast, and no reward can gain more.",
        '"generate" takes 60 % of the step (60.0 ms a step), the rewards 40 %: it is the larger one to work '
        "on.",
    ]


def test_a_reward_that_is_hidden_has_nothing_to_gain(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 100).span("generate", at, at + 100).reward("judge", at + 10, at + 60)
    assert advice(run.report())[0] == (
        "Nothing to gain from a faster reward: 50.0 ms a step runs behind other work and 0.0 ms (0 %) is "
        "exposed."
    )


def test_a_little_exposed_time_bounds_the_gain(run: Run) -> None:
    for number in range(3):
        at = 1000 * number
        run.step(number, at, at + 1000).span("generate", at, at + 980).reward("judge", at + 900, at + 1000)
    assert advice(run.report())[0] == (
        "A faster reward gains at most 2.0 %: 20.0 ms a step is exposed; another 80.0 ms of theirs is hidden "
        "behind other work."
    )


def test_what_is_outside_of_steps_holds_no_step_up(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 50).span("generate", at, at + 50).reward("judge", at + 60, at + 99)
    assert advice(run.report())[0].startswith("Nothing to gain from a faster reward")


def test_a_run_of_rewards_alone_divides_by_nothing(run: Run) -> None:
    run.reward("judge", 0, 100)
    assert (
        advice(run.report())[0]
        == "Rewards are on all the time (100.0 ms in all), and nothing runs beside them."
    )


def test_the_reward_and_the_stage_that_cost_most_are_named(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 100).span("generate", at, at + 50)
        run.reward("format", at + 50, at + 60)
        run.reward("semantic", at + 60, at + 100, stages={"tokenise": 0.016, "encode": 0.01})
    said = advice(run.report())
    assert has(said, "Of the rewards") == (
        'Of the rewards, "semantic" is exposed longest: 40.0 ms a step, 80 % of what all of them are.'
    )
    assert has(said, "Of the time of").startswith('Of the time of "semantic", 40 % is tokenising: ')
    assert has(said, "The rewards run one after the other") == (
        "The rewards run one after the other: all at once they would hold up the step 10.0 ms less at most."
    )


def test_a_stage_is_not_named_unless_it_decides(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        stages = {"tokenise": 0.01, "encode": 0.01}
        run.step(number, at, at + 100).span("generate", at, at + 50)
        run.reward("semantic", at + 50, at + 100, stages=stages)
    assert not speaks(advice(run.report()), "tokenising")


@pytest.mark.parametrize("beside", [False, True])
def test_log_probs_could_hide_a_reward_unless_they_do(run: Run, beside: bool) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 100).span("generate", at, at + 50).span("old logps", at + 50, at + 70)
        run.reward("judge", at + (50 if beside else 70), at + 100)
    said = advice(run.report())
    assert speaks(said, "Log-probs") is not beside
    if not beside:
        assert has(said, "Log-probs") == (
            "Log-probs need no rewards: rewards that run beside them, as in fastreward.integrations.grpo, "
            "hide up to 20.0 ms a step (20 %)."
        )


def test_rewards_that_overlap_do_not_run_one_after_the_other(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        run.step(number, at, at + 100).span("generate", at, at + 50)
        run.reward("format", at + 50, at + 80).reward("judge", at + 50, at + 100)
    assert not speaks(advice(run.report()), "one after the other")


def test_what_failed_is_said_however_little_it_cost(run: Run) -> None:
    run.step(1, 0, 100).span("generate", 0, 100).reward("judge", 10, 20, outcome="raised", texts=4)
    run.reward("judge", 20, 30, none=3, texts=4).reward("judge", 30, 40, outcome="cancelled", texts=4)
    run.reward("stuck", 90, None, thread=9)
    said = advice(run.report())
    assert (
        has(said, '"judge"')
        == '"judge": 1 call raised, 1 call ended before being done and 3 of 12 texts got None.'
    )
    assert has(said, '"stuck"') == '"stuck": 1 call had not returned at the end.'


def test_repeated_texts_drained_devices_and_slow_calls_are_seen(run: Run) -> None:
    for number in range(10):
        at, slow = 1000 * number, 400 if number in (3, 7) else 40
        run.step(number, at, at + 900).span("generate", at, at + 400)
        run.reward("judge", at + 400, at + 400 + slow, texts=10, unique_texts=6, drain_s=slow / 2000)
    said = advice(run.report())
    assert has(said, "40 % of the texts").endswith("would cost that much less.")
    assert has(said, "50 % of the time").startswith('50 % of the time of "judge" the device works off')
    assert has(said, "One call in ten") == (
        'One call in ten of "judge" takes 400.0 ms or more, the median 40.0 ms: the slow ones decide when '
        "the step goes on."
    )
    assert speaks(said, "nothing was recorded; Timeline.phase")


def test_texts_that_a_scorer_counted_are_scored_once_anyhow(run: Run) -> None:
    run.step(1, 0, 100).reward("semantic", 0, 100, texts=10, unique_texts=5, scorer={"tokens": 70})
    assert not speaks(advice(run.report()), "in the same call")


def test_a_rank_that_the_others_wait_for_is_named(run: Run) -> None:
    for number in range(3):
        at = 100 * number
        for rank in range(3):
            run.step(number, at, at + 100, rank).span("generate", at, at + 50, rank=rank)
            run.reward("judge", at + 50, at + (90 if rank == 1 else 55), rank=rank)
    assert has(advice(run.report()), "Rank").startswith(
        "Rank 1's rewards hold it up 40.0 ms a step, those of the others 5.0 ms"
    )


def test_a_first_step_that_warms_up_and_too_few_steps_are_said(run: Run, tmp_path: Path) -> None:
    run.step(1, 0, 1000).span("generate", 0, 1000)
    assert speaks(advice(run.report()), "Only 1 step ran, and the first warms up")
    for number in range(2, 6):
        run.step(number, 1000 + 100 * number, 1100 + 100 * number)
        run.span("generate", 1000 + 100 * number, 1100 + 100 * number)
    assert has(advice(run.report()), "The first step") == (
        "The first step took 1.00 s, the others 100.0 ms (median): it warms up, and it is in the sums."
    )


def test_the_profiler_says_what_it_cost_itself(run: Run) -> None:
    run.overhead_s = 0.003
    for number in range(3):
        run.step(number, 100 * number, 100 * number + 100).span("generate", 100 * number, 100 * number + 100)
    assert has(advice(run.report()), "The profiler") == "The profiler itself took 1.0 % of the time."


def test_without_rewards_or_anything_at_all_that_is_said(run: Run) -> None:
    assert advice(Timeline().report()) == [
        "Nothing was recorded: mark steps and phases and wrap the rewards."
    ]
    run.span("generate", 0, 10)
    assert advice(run.report()) == [
        "No reward was recorded; Timeline.wrap records one in a loop of your own.",
        '"generate" takes 100 % of the run (10.0 ms in all).',
    ]


def test_there_are_few_sentences_and_the_verdict_is_the_first(run: Run) -> None:
    for number in range(12):
        run.step(1, 0, 400).reward(f"reward {number}", 10 * number, 10 * number + 10, outcome="raised")
    said = advice(run.report())
    assert len(said) == MOST_SENTENCES
    assert said[0].startswith("Rewards hold up the step for 30 % of it")
