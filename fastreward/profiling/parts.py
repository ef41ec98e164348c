"""A step divided: each moment of it given to one thing, so that the parts add up to its wall time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from fastreward.profiling.accounting import Hiding, work_of
from fastreward.profiling.intervals import Interval, difference, measure, union
from fastreward.profiling.report import Report, StepReport
from fastreward.profiling.spans import Span

PartKind = Literal["exposed", "phase", "wait", "idle"]

Part: TypeAlias = tuple[PartKind, str]
"""What a moment is given to, and its name if it is a phase or a wait."""

EXPOSED: Final[Part] = ("exposed", "")
"""A reward that nothing hid at that moment."""

IDLE: Final[Part] = ("idle", "")
"""Nothing that was recorded."""

PRIORITY: Final[Mapping[PartKind, int]] = {"exposed": 2, "phase": 1, "wait": 0}

Window: TypeAlias = tuple[int, int, StepReport | None]
"""Begin and end of a step, in nanoseconds, and the step."""

T = TypeVar("T")


@dataclass(frozen=True)
class Divided:
    """A step by its parts, or all of a rank's time where no steps were marked.

    Each moment is given to a reward that holds the step up, if there is one; else to the phase that works, of
    several the innermost of the thread that works most; else to the wait; else to nothing recorded.

    Attributes:
        rank: Whose it is.
        step: The step, or ``None``.
        begin_ns: Where it begins, on the clock of `Process`.
        end_ns: Where it ends.
        parts: Nanoseconds by part; together its wall time.
        rewards: Nanoseconds in which each reward was exposed; calls that overlap count each.
    """

    rank: int
    step: StepReport | None
    begin_ns: int
    end_ns: int
    parts: Mapping[Part, int]
    rewards: Mapping[str, int]


@dataclass(frozen=True)
class RankTime:
    """What one rank did in the time that a report has kept.

    Attributes:
        rank: Its number.
        pieces: Its spans, and from when to when each ran.
        exposed: When each call of a reward was exposed, as sorted intervals.
        steps: Its last steps by their parts, in order.
    """

    rank: int
    pieces: Mapping[Span, Interval]
    exposed: Mapping[Span, Sequence[Interval]]
    steps: Sequence[Divided]


def rank_times(report: Report) -> list[RankTime]:
    """Divide the kept steps of each rank.

    Args:
        report: What to divide.

    Example:
        >>> from fastreward.profiling import Timeline
        >>> timeline = Timeline(device_clock=None)
        >>> with timeline.step(), timeline.phase("generate"):
        ...     pass
        >>> (step,) = rank_times(timeline.report())[0].steps
        >>> sorted(step.parts), sum(step.parts.values()) == step.end_ns - step.begin_ns
        ([('idle', ''), ('phase', 'generate')], True)
    """
    origin = min((process.began_ns for process in report.processes), default=0)
    found = []
    for rank in sorted({process.rank for process in report.processes}):
        pieces = {
            span: (span.begin_ns, report.until_ns if span.end_ns is None else span.end_ns)
            for span in report.spans
            if report.processes[span.process].rank == rank
        }
        windows: list[Window] = [
            (_ns(origin, step.begin_s), _ns(origin, step.begin_s + step.wall_s), step)
            for step in report.kept_steps
            if step.rank == rank
        ]
        if not windows and pieces:
            begins, ends = zip(*pieces.values(), strict=True)
            windows = [(min(begins), max(ends), None)]
        found.append(_rank_time(rank, pieces, windows))
    return found


def _rank_time(rank: int, pieces: Mapping[Span, Interval], windows: Sequence[Window]) -> RankTime:
    hiding = Hiding(pieces)
    exposed = {
        span: difference([piece], hiding.parts(span, piece))
        for span, piece in pieces.items()
        if span.kind == "reward"
    }
    claims = _claims(pieces, exposed)
    calls = sorted((*part, span.name) for span, parts in exposed.items() for part in parts)
    steps = []
    for (begin, end, step), on, exposing in zip(
        windows,
        _near(claims, windows, lambda claim: (claim.begin, claim.end)),
        _near(calls, windows, lambda call: call[:2]),
        strict=True,
    ):
        rewards: dict[str, int] = {}
        for first, last, name in exposing:
            rewards[name] = rewards.get(name, 0) + min(last, end) - max(first, begin)
        steps.append(Divided(rank, step, begin, end, divide(begin, end, on), rewards))
    return RankTime(rank, pieces, exposed, steps)


def _near(
    entries: Sequence[T], windows: Iterable[Window], times: Callable[[T], Interval]
) -> Iterator[list[T]]:
    """What touches each window; entries are sorted by begin, and windows neither overlap nor go back."""
    coming = deque(entries)
    near: list[T] = []
    for begin, end, _ in windows:
        while coming and times(coming[0])[0] < end:
            near.append(coming.popleft())
        near = [entry for entry in near if times(entry)[1] > begin]
        yield list(near)


@dataclass(frozen=True, slots=True)
class Claim:
    """Time that something would have.

    Attributes:
        begin: From when, in nanoseconds.
        end: Until when.
        part: What it is given to.
        weight: How much its thread works: of several phases the one of the busiest thread has the moment.
        since: When the span of it began: of a thread's phases the latest has it.
        number: The span's, for those that began at once.
    """

    begin: int
    end: int
    part: Part
    weight: int = 0
    since: int = 0
    number: int = 0

    @property
    def standing(self) -> tuple[int, int, int, int, Part]:
        """The greatest of those that are on has the moment."""
        return PRIORITY[self.part[0]], self.weight, self.since, self.number, self.part


def _claims(pieces: Mapping[Span, Interval], exposed: Mapping[Span, Sequence[Interval]]) -> list[Claim]:
    """What every moment could be given to, by begin."""
    work = work_of(pieces)
    weights: Counter[tuple[int, int]] = Counter()
    for span, parts in work.items():
        if not any(around in work for around in span.ancestors()):
            weights[span.process, span.thread] += measure(parts)
    claims = [
        Claim(begin, end, EXPOSED)
        for begin, end in union(part for parts in exposed.values() for part in parts)
    ]
    for span, piece in pieces.items():
        standing = weights[span.process, span.thread], piece[0], span.id
        if span.kind == "phase":
            claims += [Claim(begin, end, ("phase", span.name), *standing) for begin, end in work[span]]
        elif span.kind == "wait":
            claims.append(Claim(*piece, ("wait", span.name), *standing))
    return sorted(claims, key=lambda claim: claim.begin)


def divide(begin_ns: int, end_ns: int, claims: Iterable[Claim]) -> dict[Part, int]:
    """Give each moment between two times to one part.

    Args:
        begin_ns: From when.
        end_ns: Until when.
        claims: What is on, in any order; what lies outside is cut off.

    Returns:
        Nanoseconds by part; together the time between.

    Example:
        >>> claims = [Claim(0, 6, ("phase", "update")), Claim(2, 4, ("phase", "sync"), since=2)]
        >>> divide(0, 10, [*claims, Claim(3, 5, EXPOSED)])
        {('phase', 'update'): 3, ('phase', 'sync'): 1, ('exposed', ''): 2, ('idle', ''): 4}
    """
    changes: list[tuple[int, bool, Claim]] = []
    for claim in claims:
        first, last = max(claim.begin, begin_ns), min(claim.end, end_ns)
        if first < last:
            changes += [(first, True, claim), (last, False, claim)]
    changes.sort(key=lambda change: change[0])
    parts: dict[Part, int] = {}
    on: dict[int, Claim] = {}
    time = begin_ns
    for at, begins, claim in [*changes, (end_ns, True, Claim(0, 0, IDLE))]:
        if at > time:
            part = max(on.values(), key=lambda one: one.standing).part if on else IDLE
            parts[part] = parts.get(part, 0) + at - time
            time = at
        if begins:
            on[id(claim)] = claim
        else:
            del on[id(claim)]
    return parts


def _ns(origin: int, seconds: float) -> int:
    return origin + round(seconds * 1e9)
