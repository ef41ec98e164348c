"""What the page's charts draw: steps by their parts, and spans in rows, as plain numbers for JSON."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fastreward.profiling.intervals import Interval, Lanes
from fastreward.profiling.parts import EXPOSED, IDLE, Divided, Part, RankTime
from fastreward.profiling.report import Report
from fastreward.profiling.spans import Kind, Process, Span
from fastreward.profiling.wording import counted, time_text

MOST_STEPS: Final = 300
"""Steps of each rank that are drawn: the last ones."""

MOST_SPANS: Final = 20_000
"""Spans that are drawn: the last ones. A browser goes through them at every step that is chosen."""

COLOURS: Final = 8
"""Phases that have a colour of their own."""

OTHERS: Final[Part] = ("phase", "other phases")
"""The rest, which shares one."""


def chart_data(
    report: Report, times: Sequence[RankTime], most_steps: int = MOST_STEPS, most_spans: int = MOST_SPANS
) -> dict[str, Any]:
    """Make the charts' data.

    Args:
        report: What is drawn.
        times: Its kept steps by their parts.
        most_steps: Steps of each rank that are drawn.
        most_spans: Spans that are drawn.

    Returns:
        For `json.dumps`. All times are whole microseconds from the first process's begin:

        - ``parts``: ``[kind, name, colour]`` of what steps consist of, from the bottom of a bar to its top;
          a colour is the number of a phase's, or ``null``.
        - ``steps``: rank, number (``null`` where none were marked), begin, wall, and the times of the parts;
          exposed, hidden and tail time, and each reward's.
        - ``keys``: ``[kind, name, part]`` of spans.
        - ``rows``: rank, process and thread, from top to bottom.
        - ``spans``: ``[row, depth, key, begin, length, outcome, exposed, facts]`` by begin; exposed as
          ``[from its begin, length]``, facts as lines of text.
        - ``left_out``: how many steps and spans are not there.
    """
    steps = [step for rank in times for step in rank.steps[-most_steps:]]
    parts = _parts(steps)
    origin = min((process.began_ns for process in report.processes), default=0)
    marked = sum(step.step is not None for step in steps)
    shown = _last([item for rank in times for item in rank.pieces.items()], most_spans)
    exposed = {span: intervals for rank in times for span, intervals in rank.exposed.items()}
    return {
        "parts": [[kind, name, colour] for (kind, name), colour in parts.items()],
        "steps": [_step(step, list(parts), origin) for step in steps],
        **_spans(shown, exposed, report.processes, list(parts), origin),
        "left_out": {"steps": report.steps - marked, "spans": max(0, report.recorded - len(shown))},
    }


def _parts(steps: Iterable[Divided]) -> dict[Part, int | None]:
    """What steps consist of, with colours: exposed rewards, phases by size, waits, and nothing recorded."""
    sums: Counter[Part] = Counter()
    for step in steps:
        sums.update(step.parts)
    by_size = [part for part, _ in sums.most_common()]
    phases = [part for part in by_size if part[0] == "phase"]
    found: dict[Part, int | None] = {EXPOSED: None}
    found |= {part: colour for colour, part in enumerate(phases[:COLOURS])}
    if len(phases) > COLOURS:
        found[OTHERS] = COLOURS
    found |= {part: None for part in by_size if part[0] == "wait"}
    return found | {IDLE: None}


def _step(step: Divided, parts: Sequence[Part], origin: int) -> dict[str, Any]:
    spent = dict.fromkeys(parts, 0)
    for part, time in step.parts.items():
        spent[part if part in spent else OTHERS] += time
    entry: dict[str, Any] = {
        "rank": step.rank,
        "number": None if step.step is None else step.step.number,
        "begin": _us(step.begin_ns - origin),
        "wall": _us(step.end_ns - step.begin_ns),
        "parts": [_us(time) for time in spent.values()],
        "rewards": {name: _us(time) for name, time in step.rewards.items()},
    }
    if step.step is not None:
        tail = step.step.tail_s
        entry["hidden"] = round(step.step.reward_hidden_s * 1e6)
        entry["tail"] = None if tail is None else round(tail * 1e6)
    return entry


def _spans(
    shown: Iterable[tuple[Span, Interval]],
    exposed: Mapping[Span, Sequence[Interval]],
    processes: Sequence[Process],
    parts: Sequence[Part],
    origin: int,
) -> dict[str, Any]:
    """Keys, rows and spans."""
    shown = list(shown)
    rows = Rows(processes)
    places = [rows.place(span, end) for span, (_, end) in shown]
    order, labels = rows.sorted()
    keys: dict[tuple[Kind, str], int] = {}
    spans = []
    for (span, (begin, end)), (row, depth) in zip(shown, places, strict=True):
        key = keys.setdefault((span.kind, span.name), len(keys))
        bare = [[_us(first - begin), _us(last - first)] for first, last in exposed.get(span, ())]
        times = [_us(begin - origin), _us(end - begin)]
        spans.append([order[row], depth, key, *times, span.outcome, bare, _facts(span)])
    return {
        "keys": [[kind, name, _part_of(kind, name, parts)] for kind, name in keys],
        "rows": labels,
        "spans": spans,
    }


def _part_of(kind: Kind, name: str, parts: Sequence[Part]) -> int | None:
    """Which part a phase or wait is; one that no step shows may be none of them."""
    wanted: Part = EXPOSED if kind == "reward" else (kind, name)
    for part in (wanted, OTHERS):
        if part in parts:
            return parts.index(part)
    return None


def _last(pieces: Iterable[tuple[Span, Interval]], most: int) -> list[tuple[Span, Interval]]:
    """The last spans by begin, and earlier ones that ran on into their time."""
    ordered = sorted(pieces, key=lambda item: (item[1][0], -item[1][1], item[0].id))
    if len(ordered) <= most:
        return ordered
    since = ordered[len(ordered) - most][1][0]
    return [item for item in ordered if item[1][1] > since]


class Rows:
    """Places spans in rows of their threads, in the order in which they begin.

    One within another is a step deeper; one that overlaps another without being within it goes into a
    further row of the thread.

    Args:
        processes: Those that the spans belong to.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._lanes: defaultdict[tuple[int, int], Lanes] = defaultdict(Lanes)  # by process and thread
        self._rows: dict[tuple[tuple[int, int], int], int] = {}
        self._labels: list[dict[str, Any]] = []
        self._sort: list[tuple[int, int, bool, int, int]] = []

    def place(self, span: Span, end_ns: int) -> tuple[int, int]:
        """The row's number, in order of their making, and how deep in it."""
        thread = span.process, span.thread
        lane, depth = self._lanes[thread].place(span.begin_ns, end_ns)
        if (thread, lane) in self._rows:
            return self._rows[thread, lane], depth
        self._rows[thread, lane] = row = len(self._labels)
        process = self._processes[span.process]
        self._labels.append(
            {
                "rank": process.rank,
                "process": f"process {process.pid} on {process.host}",
                "thread": span.thread_name + (f" ({lane + 1})" if lane else ""),
            }
        )
        is_main = span.thread_name == threading.main_thread().name
        self._sort.append((process.rank, span.process, not is_main, self._rows[thread, 0], row))
        return row, depth

    def sorted(self) -> tuple[list[int], list[dict[str, Any]]]:
        """Where each row goes, and the rows from top to bottom: by rank, process and thread."""
        by_place = sorted(range(len(self._sort)), key=lambda row: self._sort[row])
        order = [0] * len(by_place)
        for place, row in enumerate(by_place):
            order[row] = place
        return order, [self._labels[row] for row in by_place]


def _facts(span: Span) -> list[str]:
    """What a tooltip says beside the name and the times; only what there is."""
    counts, lines = span.counts, []
    if span.kind == "reward":
        said = [counted(counts.texts, "text")]
        if counts.unique_texts != counts.texts:
            said.append(f"{counts.unique_texts:,} distinct")
        if counts.none:
            said.append(f"{counts.none:,} None")
        if tokens := counts.scorer.get("tokens"):
            said.append(counted(tokens, "token"))
        lines.append(", ".join(said))
    if counts.stages:
        lines.append(", ".join(f"{name} {time_text(seconds)}" for name, seconds in counts.stages.items()))
    for name, value in (("on the device", span.device_s), ("drain of earlier work", span.drain_s)):
        if value is not None:
            lines.append(f"{name} {time_text(value)}")
    return lines


def _us(nanoseconds: float) -> int:
    return round(nanoseconds / 1e3)
