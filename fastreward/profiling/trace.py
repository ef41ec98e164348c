"""Spans as trace events, which Perfetto and Chrome draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fastreward.profiling.intervals import Lanes
from fastreward.profiling.spans import Process, Span

STEPS_ROW: Final = 0
"""The row of a process that shows its steps."""


def trace_events(
    spans: Iterable[Span],
    processes: Sequence[Process],
    steps: Iterable[tuple[int, str, int, int]],
    until_ns: int,
) -> list[dict[str, Any]]:
    """Make complete events ("X") of spans and steps, and metadata ("M") that names their rows.

    A viewer nests the events of a row by their times, so that events that overlap without one being within
    the other need rows of their own: tasks of a thread get as many as it takes.

    Args:
        spans: In the order in which they began, process by process.
        processes: Those that the spans belong to.
        steps: Rank, name, begin and end; they are drawn in the rank's first process.
        until_ns: Where a span ends that still runs.

    Returns:
        The events; times in microseconds from the first begin.
    """
    spans, steps = list(spans), list(steps)
    numbers = _process_numbers(processes)
    origin = min([span.begin_ns for span in spans] + [begin for _, _, begin, _ in steps], default=0)
    events = [
        _metadata("process_name", number, STEPS_ROW, f"rank {process.rank} ({process.host} {process.pid})")
        for process, number in zip(processes, numbers, strict=True)
    ]
    first_of_rank = {p.rank: n for p, n in reversed(list(zip(processes, numbers, strict=True)))}
    events += [_metadata("thread_name", number, STEPS_ROW, "steps") for number in first_of_rank.values()]
    for rank, name, begin, end in steps:
        events.append(
            _complete(name, "step", first_of_rank[rank], STEPS_ROW, begin - origin, end - begin, {})
        )
    for index, number in enumerate(numbers):
        events += _process_events([s for s in spans if s.process == index], number, origin, until_ns)
    return events


def _process_numbers(processes: Sequence[Process]) -> list[int]:
    """A number for each process: the system's own, or where machines share one, the next that is free."""
    numbers: list[int] = []
    for process in processes:
        number = process.pid
        while number in numbers:
            number += 1
        numbers.append(number)
    return numbers


def _process_events(spans: Sequence[Span], number: int, origin: int, until_ns: int) -> list[dict[str, Any]]:
    events = []
    rows = _Rows()
    for span in spans:
        end = until_ns if span.end_ns is None else span.end_ns
        row, is_new = rows.place(span, end)
        if is_new:
            events.append(_metadata("thread_name", number, row, is_new))
        events.append(
            _complete(
                span.name, span.kind, number, row, span.begin_ns - origin, end - span.begin_ns, _args(span)
            )
        )
    return events


class _Rows:
    """Numbers the rows of a process: a thread has one for each of its lanes."""

    def __init__(self) -> None:
        self._lanes: defaultdict[int, Lanes] = defaultdict(Lanes)  # by thread
        self._rows: dict[tuple[int, int], int] = {}

    def place(self, span: Span, end_ns: int) -> tuple[int, str]:
        """Return the row, and its name if it is new."""
        lane, _ = self._lanes[span.thread].place(span.begin_ns, end_ns)
        known = span.thread, lane
        if known in self._rows:
            return self._rows[known], ""
        self._rows[known] = row = STEPS_ROW + 1 + len(self._rows)
        return row, span.thread_name + (f" ({lane + 1})" if lane else "")


def _args(span: Span) -> dict[str, Any]:
    args: dict[str, Any] = {"outcome": span.outcome}
    if span.kind == "reward":
        args |= {
            "texts": span.counts.texts,
            "unique_texts": span.counts.unique_texts,
            "none": span.counts.none,
        }
        args |= span.counts.scorer | {f"{name}_s": value for name, value in span.counts.stages.items()}
    if span.task is not None:
        args["task"] = span.task
    for name in ("device_s", "drain_s"):
        if (value := getattr(span, name)) is not None:
            args[name] = value
    return args


def _complete(
    name: str, category: str, process: int, row: int, begin_ns: int, lasts_ns: int, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": begin_ns / 1e3,
        "dur": lasts_ns / 1e3,
        "pid": process,
        "tid": row,
        "args": args,
    }


def _metadata(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "ts": 0, "pid": process, "tid": row, "args": {"name": name}}
