"""What comes out: JSON, a table, and a trace that a viewer can draw."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fastreward.errors import InputError
from fastreward.profiling import Report, Timeline, stage
from fastreward.profiling.report import quantile


@pytest.fixture(scope="module")
def report() -> Report:
    """Two steps with tasks that overlap, a thread, and something that still runs."""
    timeline = Timeline(device_clock=None)
    free, stuck = threading.Event(), threading.Event()

    async def reward(completions: list[str]) -> list[float | None]:
        await asyncio.sleep(0.02)
        return [1.0, None]

    def hangs(completions: list[str]) -> None:
        stuck.set()
        free.wait(30)

    watched = timeline.wrap(reward)

    async def rewards() -> None:
        with timeline.phase("rewards"):
            await asyncio.gather(*(watched(completions=["a", "a"]) for _ in range(4)))

    thread = threading.Thread(target=timeline.wrap(hangs), args=(["a"],), name="a thread")
    for _ in range(2):
        with timeline.step():
            with timeline.phase("generate"):
                time.sleep(0.01)
            asyncio.run(rewards())
    thread.start()
    stuck.wait(30)
    found = timeline.report()
    free.set()
    thread.join()
    return found


def test_the_figures_are_frozen(report: Report) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.steps = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rewards[0].texts = 3  # type: ignore[misc]


def test_json_holds_every_figure_as_a_plain_finite_number(report: Report) -> None:
    read = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert read["steps"] == 2
    assert {row["name"] for row in read["rewards"]} == {"reward", "hangs"}
    (reward,) = (row for row in read["rewards"] if row["name"] == "reward")
    assert (reward["texts"], reward["unique_texts"], reward["none"]) == (16, 8, 8)
    assert reward["most_in_flight"] == 4
    assert [step["number"] for step in read["kept_steps"]] == [1, 2]
    assert "spans" not in read


def test_the_table_names_everything(report: Report) -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(report.as_table())
    shown = text.getvalue()
    for expected in (
        "generate",
        "rewards",
        "hangs",
        "1 hung",
        "8 None",
        "exposed",
        "hidden",
        "tail:",
        "itself",
    ):
        assert expected in shown


def test_the_table_of_rewards_names_what_they_did() -> None:
    timeline = Timeline(device_clock=None)

    def reward(completions: list[str]) -> list[float]:
        with stage("encode"):
            return [1.0] * len(completions)

    timeline.wrap(reward)(["a", "a", "b"])
    text = io.StringIO()
    Console(file=text, width=200).print(timeline.report().rewards_table())
    (line,) = (line for line in text.getvalue().splitlines() if "reward " in line and "│" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][:8] == [
        "reward",
        "1",
        "3",
        "2",
        "–",
        "–",
        "–",
        "1",
    ]
    assert "encode" in line


def test_an_empty_report_can_be_shown() -> None:
    empty = Timeline().report()
    assert (empty.steps, empty.wall_s, empty.phases, empty.tail_ratio) == (0, 0.0, (), None)
    Console(file=io.StringIO()).print(empty.as_table(), empty.rewards_table())
    json.dumps(empty.as_json(), allow_nan=False)
    assert [event["ph"] for event in empty.chrome_trace()] == ["M", "M"]


def test_the_trace_is_what_viewers_read(report: Report) -> None:
    events = json.loads(json.dumps(report.chrome_trace(), allow_nan=False))
    named: set[tuple[int, int]] = set()
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid", "args"} <= set(event)
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M" and event["name"] == "thread_name":
            named.add((event["pid"], event["tid"]))
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names.count("reward") == 8
    assert {"step 1", "step 2", "generate", "rewards", "hangs"} <= set(names)
    assert any(event["args"].get("name") == "a thread" for event in events)


def test_events_of_a_row_nest_and_never_cross(report: Report) -> None:
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in report.chrome_trace():
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        for begin, end in spans:
            for other_begin, other_end in spans:
                crosses = begin < other_begin < end < other_end
                assert not crosses
    assert max(map(len, rows.values())) > 1


def test_the_trace_keeps_the_times(report: Report) -> None:
    steps = [event for event in report.chrome_trace() if event["name"].startswith("step ")]
    generated = [event for event in report.chrome_trace() if event["name"] == "generate"]
    for step, generate, kept in zip(steps, generated, report.kept_steps, strict=True):
        assert step["dur"] == pytest.approx(kept.wall_s * 1e6, abs=1)
        assert step["ts"] <= generate["ts"]
        assert generate["ts"] + generate["dur"] <= step["ts"] + step["dur"]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(steps))


def written(folder: Path, rank: int, **changes: Any) -> Path:
    timeline = Timeline(folder=folder, rank=rank, device_clock=None)
    with timeline.step(), timeline.phase("generate"):
        timeline.wrap(len)(["a"])
    timeline.close()
    (path,) = folder.glob(f"rank{rank}-*")
    if changes:
        head, *rest = path.read_text().splitlines(keepends=True)
        path.write_text(json.dumps(json.loads(head) | changes) + "\n" + "".join(rest))
    return path


def test_ranks_of_machines_with_equal_process_numbers_stay_apart_in_the_trace(tmp_path: Path) -> None:
    for rank in range(2):
        written(tmp_path, rank, host=f"node{rank}")
    report = Timeline.merge(tmp_path)
    assert report.processes[0].pid == report.processes[1].pid
    generated = [event for event in report.chrome_trace() if event["name"] == "generate"]
    assert len({event["pid"] for event in generated}) == 2
    assert report.steps == 2
    assert json.dumps(report.as_json(), allow_nan=False)


def test_a_merged_run_says_what_the_process_itself_says(tmp_path: Path) -> None:
    timeline = Timeline(folder=tmp_path, device_clock=None)
    reward = timeline.wrap(lambda completions: [None], name="r")
    for _ in range(5):
        with timeline.step(), timeline.phase("generate"):
            reward(["a", "b"])
    own = timeline.report()
    timeline.close()
    merged = Timeline.merge(tmp_path)
    assert merged.as_json()["phases"] == own.as_json()["phases"]
    assert merged.as_json()["rewards"] == own.as_json()["rewards"]
    assert merged.as_json()["kept_steps"] == own.as_json()["kept_steps"]
    assert merged.chrome_trace() == own.chrome_trace()
    few = Timeline.merge(tmp_path, keep_steps=2)
    assert len(few.kept_steps) == 2
    assert few.as_json()["rewards"] == own.as_json()["rewards"]


def test_files_of_another_version_are_refused(tmp_path: Path) -> None:
    written(tmp_path, 0, version=99)
    with pytest.raises(InputError, match="version 99"):
        Timeline.merge(tmp_path)


def test_a_timeline_that_is_closed_goes_on_in_memory(tmp_path: Path) -> None:
    with Timeline(folder=tmp_path, device_clock=None) as timeline:
        pass
    with timeline.phase("after"):
        pass
    timeline.close()
    assert timeline.report().phases[0].count == 1
    assert timeline.report().failures == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_quantiles_are_numpys(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)
