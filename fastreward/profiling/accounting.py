"""What of each span was hidden under other work, in one stretch of one rank's time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fastreward.profiling.intervals import (
    Coverage,
    Interval,
    difference,
    levels,
    measure,
    union,
    where_level,
)
from fastreward.profiling.spans import Kind, Span, Step

Key: TypeAlias = tuple[Kind, str]
"""Kind and name of a span: what it is reported under."""

FEW_RELATIVES: Final = 8
"""Up to here a span's relatives are counted off the height of all work, which is found once for all spans;
beyond, the union of the others' work is cheaper, and few spans have so many."""


@dataclass(frozen=True)
class Seconds:
    """Time in nanoseconds, of one key in one stretch.

    Attributes:
        wall_ns: Sum over its spans.
        hidden_ns: What of it was hidden.
    """

    wall_ns: int
    hidden_ns: int


@dataclass(frozen=True)
class Stretch:
    """What happened in a stretch of time of one rank: a step, or what is between steps.

    Attributes:
        begin_ns: Where it begins.
        end_ns: Where it ends.
        step: The step that it is, or ``None``.
        by_key: The time of each phase and reward.
        reward_exposed_ns: When a reward ran of which nothing hid that moment; overlapping rewards count once.
        reward_hidden_ns: When rewards ran, all of them hidden.
        idle_ns: When nothing ran that was recorded.
        tail_ns: From the end of the last generation to that of the last reward, both begun here; ``None``
            where one of them is missing.
        in_flight: Most rewards at once, by name; under "" all that are in no other reward.
    """

    begin_ns: int
    end_ns: int
    step: Step | None
    by_key: Mapping[Key, Seconds]
    reward_exposed_ns: int
    reward_hidden_ns: int
    idle_ns: int
    tail_ns: int | None
    in_flight: Mapping[str, int]

    @property
    def wall_ns(self) -> int:
        """How long it is."""
        return self.end_ns - self.begin_ns


def account(
    begin_ns: int,
    end_ns: int,
    spans: Iterable[Span],
    generation: Collection[str],
    step: Step | None = None,
) -> Stretch:
    """Account for a stretch of time.

    Args:
        begin_ns: Where it begins.
        end_ns: Where it ends; a span that runs on is counted up to here.
        spans: All spans of one rank that touch it; others are left out.
        generation: Names of the phases that generate.
        step: The step that it is.
    """
    pieces: dict[Span, Interval] = {}
    for span in spans:
        piece = max(span.begin_ns, begin_ns), min(end_ns if span.end_ns is None else span.end_ns, end_ns)
        if piece[0] < piece[1]:
            pieces[span] = piece
    hidden = Hiding(pieces)
    by_key: dict[Key, Seconds] = {}
    exposed: list[Interval] = []
    for span, piece in pieces.items():
        parts = hidden.parts(span, piece)
        known = by_key.get((span.kind, span.name), Seconds(0, 0))
        by_key[span.kind, span.name] = Seconds(
            known.wall_ns + piece[1] - piece[0], known.hidden_ns + measure(parts)
        )
        if span.kind == "reward":
            exposed += difference([piece], parts)
    rewards = [piece for span, piece in pieces.items() if span.kind == "reward"]
    exposed_ns = measure(union(exposed))
    return Stretch(
        begin_ns,
        end_ns,
        step,
        by_key,
        reward_exposed_ns=exposed_ns,
        reward_hidden_ns=measure(union(rewards)) - exposed_ns,
        idle_ns=end_ns - begin_ns - measure(union(pieces.values())),
        tail_ns=_tail(begin_ns, pieces, generation),
        in_flight=_in_flight(pieces),
    )


class Hiding:
    """Finds what of a span is hidden: where a phase works that is neither around the span nor within it.

    Args:
        pieces: The spans of a stretch, and the part of each that lies in it.
    """

    def __init__(self, pieces: Mapping[Span, Interval]) -> None:
        self._work = work_of(pieces)
        self._heights = levels(part for parts in self._work.values() for part in parts)
        self._at_least: dict[int, Coverage] = {}
        self._relatives: dict[Span, list[Span]] = {span: [] for span in pieces}
        for span in pieces:
            if span in self._work:
                self._relatives[span].append(span)
            for around in span.ancestors():
                if around in self._work:
                    self._relatives[span].append(around)
                if span in self._work and around in self._relatives:
                    self._relatives[around].append(span)

    def parts(self, span: Span, piece: Interval) -> list[Interval]:
        """The parts of its piece that are hidden, sorted."""
        relatives = self._relatives[span]
        if len(relatives) > FEW_RELATIVES:
            kin = set(relatives)
            others = union(part for one, parts in self._work.items() if one not in kin for part in parts)
            return list(Coverage(others).parts(*piece))
        # Where k relatives work, another one works too if all work is higher than k.
        begin, end = piece
        theirs = levels(
            (max(first, begin), min(last, end)) for one in relatives for first, last in self._work[one]
        )
        found: list[Interval] = []
        time, height = begin, 0
        for until, after in [*theirs, (end, 0)]:
            if time < until:
                found += self._where(height + 1).parts(time, until)
            time, height = until, after
        return union(found)

    def _where(self, height: int) -> Coverage:
        if height not in self._at_least:
            self._at_least[height] = Coverage(where_level(self._heights, height))
        return self._at_least[height]


def work_of(pieces: Mapping[Span, Interval]) -> dict[Span, list[Interval]]:
    """When each phase works: not while it waits, which a wait within it says, in its own thread and task."""
    waits: dict[Span, list[Interval]] = {}
    for span, piece in pieces.items():
        if span.kind == "wait":
            for around in span.ancestors():
                if (around.process, around.thread, around.task) != (span.process, span.thread, span.task):
                    break
                waits.setdefault(around, []).append(piece)
    return {
        span: difference([piece], union(waits.get(span, ())))
        for span, piece in pieces.items()
        if span.kind == "phase"
    }


def _tail(begin_ns: int, spans: Iterable[Span], generation: Collection[str]) -> int | None:
    """The time from the last generation's end to the last reward's, 0 at least, of what began here."""
    begun = [span for span in spans if span.begin_ns >= begin_ns and span.end_ns is not None]
    rewards = _ends([span for span in begun if span.kind == "reward"])
    generations = _ends([span for span in begun if span.kind == "phase" and span.name in generation])
    return max(0, max(rewards) - max(generations)) if rewards and generations else None


def _ends(spans: Sequence[Span]) -> list[int]:
    return [span.end_ns for span in spans if span.end_ns is not None]


def _in_flight(pieces: Mapping[Span, Interval]) -> dict[str, int]:
    """Most rewards at once, by name; under "" those that are in no other reward."""
    running: dict[str, list[Interval]] = {}
    for span, piece in pieces.items():
        if span.kind != "reward":
            continue
        running.setdefault(span.name, []).append(piece)
        if not any(around.kind == "reward" for around in span.ancestors()):
            running.setdefault("", []).append(piece)
    return {name: max(height for _, height in levels(parts)) for name, parts in running.items()}
