"""Logged calls scored again: which are, how long they take, and what is said of those that cannot be."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastreward.errors import InputError
from fastreward.profiling.replay import ReplayResult, replay
from fastreward.rewards.semantic import SemanticReward

HEART = "The heart pumps blood through the lungs."


def call(reward: Any = "judge", seconds: Any = 0.5, **more: Any) -> dict[str, Any]:
    entry = {"reward": reward, "step": 1, "rank": 0, "seconds": seconds}
    return entry | {"completions": [HEART, "A text."], "references": [HEART, [HEART, "A text."]]} | more


def log(folder: Path, *entries: Any) -> Path:
    path = folder / "calls.jsonl"
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Slow:
    """A reward that takes ten milliseconds and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[list[Any], list[Any]]] = []

    def __call__(self, completions: list[Any], reference: list[Any]) -> list[float | None]:
        self.given.append((completions, reference))
        time.sleep(0.01)
        return [None, *[1.0 for _ in completions[1:]]]


def test_semantic_reward_replays_strings_conversations_and_several_references(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": HEART}]
    reward = SemanticReward()
    path = log(tmp_path, call(), call(completions=[chat, HEART], references=[HEART, None], seconds=30))
    result = replay(path, reward)
    (judge,) = result.rewards
    assert (judge.name, judge.calls, judge.texts, judge.none, judge.skipped) == ("judge", 2, 4, 1, 0)
    assert (judge.recorded_s, judge.recorded_median_s) == (30.5, 15.25)
    assert judge.recorded_p90_s == pytest.approx(27.05)
    assert 0 < judge.replayed_s < 30.5
    assert judge.speedup == pytest.approx(30.5 / judge.replayed_s)
    assert result.start_s > 0
    assert reward.counts.samples == 5  # four logged ones, and the one that starts the encoder


def test_each_call_is_timed_and_given_as_it_was_logged(tmp_path: Path) -> None:
    reward = Slow()
    result = replay(log(tmp_path, call(), call("other", 0.001), call()), reward)
    first, second = result.rewards
    assert (first.name, first.calls, second.name, second.calls) == ("judge", 2, "other", 1)
    assert 0.02 <= first.replayed_s < 2
    assert second.replayed_median_s == second.replayed_p90_s == pytest.approx(second.replayed_s)
    assert (first.none, second.none) == (2, 1)
    assert reward.given[1:] == [([HEART, "A text."], [HEART, [HEART, "A text."]])] * 3
    assert result.sentences()[0].startswith('"judge" took 500.0 ms a call; the same texts take ')
    assert result.sentences()[1].endswith("times as slow in all.")


def test_calls_without_references_are_said_not_to_be_replayable(tmp_path: Path) -> None:
    path = log(tmp_path, call("format", 0.1, references=None), call(), call(references=[None, ""]))
    result = replay(path, Slow())
    judge, style = result.rewards
    assert (judge.calls, judge.skipped, style.calls, style.skipped) == (1, 1, 0, 1)
    assert (style.speedup, style.replayed_median_s) == (None, None)
    assert result.sentences()[0].endswith("; 1 call had no references.")
    assert result.sentences()[1] == '"format" has no references to compare with: not replayable.'
    text = io.StringIO()
    Console(file=text, width=200).print(result.as_table())
    (row,) = (line for line in text.getvalue().splitlines() if "format" in line)
    assert "not replayable" in row


def test_lines_that_are_no_calls_are_counted_and_the_rest_is_replayed(tmp_path: Path) -> None:
    good = json.dumps(call())
    broken = [
        good[:40],
        "[]",
        call(reward=None),
        call(seconds=-1),
        call(seconds=True),
        call(seconds=float("nan")),
        call(completions="a text"),
        call(references=["one"]),
    ]
    result = replay(log(tmp_path, "", good, *broken), Slow())
    assert (result.broken_lines, result.rewards[0].calls) == (len(broken), 1)
    assert any("8 lines could not be read" in note for note in result.notes())


def test_a_bound_on_the_calls_holds_for_each_reward(tmp_path: Path) -> None:
    path = log(tmp_path, *[call() for _ in range(4)], call("other"))
    result = replay(path, Slow(), most_calls=2)
    assert [(reward.name, reward.calls) for reward in result.rewards] == [("judge", 2), ("other", 1)]
    assert result.left_out == 2
    assert any(note.startswith("2 calls left out") for note in result.notes())


def test_the_column_of_the_references_can_be_named(tmp_path: Path) -> None:
    given = []

    def reward(completions: list[str], explanation: list[str]) -> list[float]:
        given.append(explanation)
        return [1.0 for _ in completions]

    replay(log(tmp_path, call()), reward, reference="explanation")
    assert given[-1] == [HEART, [HEART, "A text."]]


def test_the_result_is_plain_json(tmp_path: Path) -> None:
    result: ReplayResult = replay(log(tmp_path, call()), Slow())
    read = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert read["rewards"][0]["name"] == "judge"
    assert set(read) == {"rewards", "start_s", "broken_lines", "left_out"}


def test_bad_arguments_and_files_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    path = log(tmp_path, call())
    with pytest.raises(InputError, match="a file of logged calls"):
        replay(tmp_path / "nowhere.jsonl", Slow())
    with pytest.raises(InputError, match="a reward that can be called"):
        replay(path, "judge")  # type: ignore[arg-type]
    for bound in (0, True, 1.5):
        with pytest.raises(InputError, match="1 or more as most_calls"):
            replay(path, Slow(), most_calls=bound)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"2 lines in .* that cannot be read"):
        replay(log(tmp_path, "{", "nothing"), Slow())
    with pytest.raises(InputError, match="which is empty"):
        replay(log(tmp_path, ""), Slow())
