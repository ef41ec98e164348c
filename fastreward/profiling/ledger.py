"""Sums over a run in bounded memory: the last steps stay as spans, older ones as totals."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from fastreward.profiling.accounting import Key, Stretch, account
from fastreward.profiling.spans import Counts, Span, Step

KEPT_DURATIONS: Final = 4096
"""Durations of each phase and reward that are kept, for their quantiles."""


@dataclass
class Tally:
    """Sums over the spans of one key; `Report` says what they mean."""

    begun: int = 0
    ended: int = 0
    raised: int = 0
    cancelled: int = 0
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_DURATIONS))
    wall_ns: int = 0
    wall_in_steps_ns: int = 0
    hidden_ns: int = 0
    in_flight: int = 0
    counts: Counts = field(default_factory=Counts)
    device_s: float = 0.0
    device_calls: int = 0
    drain_s: float = 0.0
    drain_calls: int = 0

    def end(self, span: Span) -> None:
        """Count a span that has ended."""
        assert span.end_ns is not None
        if span.outcome == "running":  # its process was gone first
            return
        self.ended += 1
        self.raised += span.outcome == "raised"
        self.cancelled += span.outcome == "cancelled"
        self.durations_s.append((span.end_ns - span.begin_ns) / 1e9)
        self.counts.add(span.counts)
        if span.device_s is not None:
            self.device_s += span.device_s
            self.device_calls += 1
        if span.drain_s is not None:
            self.drain_s += span.drain_s
            self.drain_calls += 1


@dataclass
class Totals:
    """Sums over stretches of one or more ranks.

    Attributes:
        tallies: By kind and name.
        steps: Steps that ended, or run at the report, of each rank.
        in_steps_ns: Time in steps.
        outside_ns: Time out of them.
        idle_in_steps_ns: What of the first had nothing that was recorded.
        idle_outside_ns: What of the second.
        reward_exposed_ns: As in `Stretch`.
        reward_hidden_ns: As in `Stretch`.
        tails_s: Tails of the last steps.
        tail_ns: Their sum over all steps.
        tail_steps_ns: Time in the steps that have one.
        in_flight: Most rewards at once in one rank, those within rewards left out.
    """

    tallies: dict[Key, Tally] = field(default_factory=dict)
    steps: int = 0
    in_steps_ns: int = 0
    outside_ns: int = 0
    idle_in_steps_ns: int = 0
    idle_outside_ns: int = 0
    reward_exposed_ns: int = 0
    reward_hidden_ns: int = 0
    tails_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_DURATIONS))
    tail_ns: int = 0
    tail_steps_ns: int = 0
    in_flight: int = 0

    def tally(self, span: Span) -> Tally:
        """The sums of a span's kind and name."""
        return self.tallies.setdefault((span.kind, span.name), Tally())

    def add(self, stretch: Stretch) -> None:
        """Add the times of a stretch."""
        for key, seconds in stretch.by_key.items():
            tally = self.tallies.setdefault(key, Tally())
            tally.wall_ns += seconds.wall_ns
            tally.hidden_ns += seconds.hidden_ns
            if stretch.step is not None:
                tally.wall_in_steps_ns += seconds.wall_ns
        for name, most in stretch.in_flight.items():
            if name:
                tally = self.tallies["reward", name]
                tally.in_flight = max(tally.in_flight, most)
            else:
                self.in_flight = max(self.in_flight, most)
        self.reward_exposed_ns += stretch.reward_exposed_ns
        self.reward_hidden_ns += stretch.reward_hidden_ns
        if stretch.step is None:
            self.outside_ns += stretch.wall_ns
            self.idle_outside_ns += stretch.idle_ns
            return
        self.in_steps_ns += stretch.wall_ns
        self.idle_in_steps_ns += stretch.idle_ns
        if stretch.tail_ns is not None:
            self.tails_s.append(stretch.tail_ns / 1e9)
            self.tail_ns += stretch.tail_ns
            self.tail_steps_ns += stretch.wall_ns


class Ledger:
    """The spans and steps of one rank: those that are not settled yet, and the totals of the others.

    Spans are added in the order in which they begin, and so are steps.

    Args:
        generation: Names of the phases that generate.
        totals: Where to add; ranks may share them.

    Attributes:
        steps: Those that are not settled.
        first_step_ns: When the first of all steps began; ``None`` before it.
    """

    def __init__(self, generation: Collection[str], totals: Totals) -> None:
        self.totals = totals
        self.steps: deque[Step] = deque()
        self.first_step_ns: int | None = None
        self._generation = generation
        self._active: list[Span] = []  # began in what is settled, and ran on
        self._coming: deque[Span] = deque()
        self._settled_ns: int | None = None
        self._has_settled = False
        self._is_copy = False

    def __len__(self) -> int:
        return len(self._active) + len(self._coming)

    @property
    def spans(self) -> list[Span]:
        """Those that are not settled, in the order in which they began."""
        return [*self._active, *self._coming]

    def add_span(self, span: Span) -> None:
        """Add one that begins."""
        self._started(span.begin_ns)
        self._coming.append(span)

    def add_step(self, step: Step) -> None:
        """Add one that begins."""
        self._started(step.begin_ns)
        self.steps.append(step)
        if self.first_step_ns is None:
            self.first_step_ns = step.begin_ns

    def copy(self) -> Ledger:
        """One of the same spans and steps that can be settled while this one goes on."""
        other = Ledger(self._generation, copy.deepcopy(self.totals))
        other.steps, other.first_step_ns = self.steps.copy(), self.first_step_ns
        other._active, other._coming = self._active.copy(), self._coming.copy()
        other._settled_ns = self._settled_ns
        other._has_settled = self._has_settled
        other._is_copy = True
        return other

    def settle(self, until_ns: int) -> list[Stretch]:
        """Move what was before a time into the totals; spans that ran on stay.

        Returns:
            The stretches that were settled.
        """
        if self._settled_ns is None or until_ns <= self._settled_ns:
            return []
        stretches = []
        for begin_ns, end_ns, step in self._windows(self._settled_ns, until_ns):
            while self._coming and self._coming[0].begin_ns < end_ns:
                span = self._coming.popleft()
                self.totals.tally(span).begun += 1
                self._active.append(span)
            stretch = account(begin_ns, end_ns, self._active, self._generation, step)
            self.totals.add(stretch)
            stretches.append(stretch)
            self._drop_ended(end_ns)
        self._settled_ns, self._has_settled = until_ns, True
        while self.steps and self._is_over(self.steps[0], until_ns):
            self.totals.steps += 1
            self.steps.popleft()
        return stretches

    def when_few(self, steps: int, spans: int) -> int | None:
        """Until when to settle, so that no more steps and spans than these are left; ``None`` for nothing."""
        until = None
        if len(self.steps) > steps:
            until = self.steps[len(self.steps) - steps].begin_ns
        if len(self._coming) > spans:
            # Half of them: settling costs something each time.
            until = max(until or 0, self._coming[len(self._coming) - spans // 2].begin_ns)
        return until

    def last_ns(self, now_ns: int) -> int:
        """When the last thing ended that was recorded: now, if a span or a step runs."""
        ends = [span.end_ns for span in self.spans] + [step.end_ns for step in self.steps]
        known = [end for end in ends if end is not None]
        return now_ns if len(known) < len(ends) else max(known, default=self._settled_ns or now_ns)

    def _started(self, begin_ns: int) -> None:
        if self._settled_ns is None or (not self._has_settled and begin_ns < self._settled_ns):
            self._settled_ns = begin_ns

    def _drop_ended(self, until_ns: int) -> None:
        running = []
        for span in self._active:
            if span.end_ns is None or span.end_ns > until_ns:
                running.append(span)
            else:
                self.totals.tally(span).end(span)
                if not self._is_copy:
                    span.parent = None  # or spans that begin one another would hold all of the run
        self._active = running

    @staticmethod
    def _is_over(step: Step, until_ns: int) -> bool:
        return step.end_ns is not None and step.end_ns <= until_ns

    def _windows(self, begin_ns: int, until_ns: int) -> Iterator[tuple[int, int, Step | None]]:
        """Steps and what is between them, in order, without a gap."""
        for step in list(self.steps):
            first = max(step.begin_ns, begin_ns)
            last = until_ns if step.end_ns is None else min(step.end_ns, until_ns)
            if last <= begin_ns and step.end_ns is not None:
                continue
            if first >= until_ns:
                break
            if begin_ns < first:
                yield begin_ns, first, None
            if first < last:
                yield first, last, step
            begin_ns = max(begin_ns, last)
        if begin_ns < until_ns:
            yield begin_ns, until_ns, None
