"""What a timeline found out: frozen figures, as JSON, as a table and as a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from fastreward.profiling.accounting import Stretch
from fastreward.profiling.spans import Kind, Process, Span
from fastreward.profiling.trace import trace_events
from fastreward.profiling.wording import time_text

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PhaseReport:
    """One phase over a run, all ranks together. Times are seconds.

    Attributes:
        name: Its name.
        kind: "phase", or "wait" for one in which its thread only waited.
        count: How often it began.
        running: How many of those had not ended at the report; their times go up to it.
        median_s: Of the last 4,096 that ended, or ``None``.
        p90_s: Nine of ten of these took less.
        total_s: Wall time, summed: phases that run at once count each.
        share: What of it was in steps, as a part of the steps' wall time; of all time where there are none.
        exposed_s: What of the total was not hidden: see `Timeline`.
        hidden_s: The rest.
        device_s: On the device's stream from begin to end, summed over those for which it is known.
        drain_s: In which the device still worked off what was queued before; part of the total.
    """

    name: str
    kind: Kind
    count: int
    running: int
    median_s: float | None
    p90_s: float | None
    total_s: float
    share: float
    exposed_s: float
    hidden_s: float
    device_s: float | None
    drain_s: float | None

    @property
    def label(self) -> str:
        """What to call it in a table."""
        return f"{self.name} (waits)" if self.kind == "wait" else self.name

    @property
    def note(self) -> str:
        """What is out of the ordinary."""
        return f"{self.running} running" if self.running else ""


@dataclass(frozen=True)
class RewardReport(PhaseReport):
    """One reward over a run: every call has returned, or raised, or was cancelled, or hung.

    Attributes:
        raised: Calls that raised.
        cancelled: Calls that were cancelled, closed before they were done, or interrupted.
        hung: Calls that were still running at the report; the same as `running`.
        texts: Texts handed over.
        unique_texts: Distinct ones of each call, summed.
        none: Texts that got ``None``.
        most_in_flight: Most calls at once in one rank.
        tokens: Encoded tokens, if the reward has a scorer that counts; else ``None``.
        encoded_texts: Texts that went through the encoder, likewise.
        cache_hits: Texts whose vectors were known, likewise.
        cache_misses: References that had to be encoded, likewise.
        stages: Seconds of host time by `stage`, of rewards that have them.
    """

    raised: int
    cancelled: int
    hung: int
    texts: int
    unique_texts: int
    none: int
    most_in_flight: int
    tokens: int | None
    encoded_texts: int | None
    cache_hits: int | None
    cache_misses: int | None
    stages: Mapping[str, float]

    @property
    def hit_rate(self) -> float | None:
        """What part of the vectors that its scorers needed was known; ``None`` if that is not counted."""
        needed = (self.cache_hits or 0) + (self.encoded_texts or 0)
        return None if self.cache_hits is None or not needed else self.cache_hits / needed

    @property
    def note(self) -> str:
        """What is out of the ordinary."""
        counts = (("raised", self.raised), ("cancelled", self.cancelled), ("hung", self.hung))
        notes = [f"{count} {what}" for what, count in counts if count]
        return ", ".join([*notes, *([f"{self.none} None"] if self.none else [])])


@dataclass(frozen=True)
class StepReport:
    """One step of one rank. Times are seconds.

    Attributes:
        number: As the trainer counts.
        rank: Whose step it is.
        begin_s: When it began, from the begin of the report's first process.
        wall_s: How long it took.
        phases: Seconds in it by phase, waits included; those that run at once count each.
        rewards: Seconds in it by reward, likewise.
        reward_exposed_s: Time in which rewards held it up: overlapping rewards count once.
        reward_hidden_s: Time in which rewards ran behind other work.
        tail_s: From the end of its last generation to that of its last reward, or ``None``.
        idle_s: Time in which nothing ran that was recorded.
    """

    number: int
    rank: int
    begin_s: float
    wall_s: float
    phases: Mapping[str, float]
    rewards: Mapping[str, float]
    reward_exposed_s: float
    reward_hidden_s: float
    tail_s: float | None
    idle_s: float

    @classmethod
    def of(cls, stretch: Stretch, rank: int, origin_ns: int) -> StepReport:
        """Read a stretch that is a step."""
        assert stretch.step is not None
        seconds: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for (kind, name), spent in stretch.by_key.items():
            known = seconds[kind == "reward"]
            known[name] = known.get(name, 0.0) + spent.wall_ns / 1e9
        return cls(
            number=stretch.step.number,
            rank=rank,
            begin_s=(stretch.begin_ns - origin_ns) / 1e9,
            wall_s=stretch.wall_ns / 1e9,
            phases=seconds[False],
            rewards=seconds[True],
            reward_exposed_s=stretch.reward_exposed_ns / 1e9,
            reward_hidden_s=stretch.reward_hidden_ns / 1e9,
            tail_s=None if stretch.tail_ns is None else stretch.tail_ns / 1e9,
            idle_s=stretch.idle_ns / 1e9,
        )


@dataclass(frozen=True)
class Report:
    """Where the time of a run went. Times are seconds, summed over ranks.

    `Timeline` says what is exposed and what is hidden.

    Attributes:
        steps: Steps, of each rank; 0 where none were marked, and all time is taken for one.
        wall_s: Wall time of the steps, or of everything where there are none.
        phases: Longest first.
        rewards: Longest first.
        reward_exposed_s: Time in which rewards held a rank up: overlapping rewards count once.
        reward_hidden_s: Time in which rewards ran behind other work, likewise.
        tail_median_s: Of a step, from the end of its last generation to that of its last reward.
        tail_p90_s: Nine of ten tails are shorter; of the last 4,096.
        tail_total_s: Sum of the tails.
        tail_ratio: That sum as a part of the wall time of the steps that have a tail.
        most_in_flight: Most rewards at once in one rank; a reward within a reward is not counted.
        idle_s: Part of `wall_s` in which nothing ran that was recorded.
        overhead_s: Time that the timeline itself took, on the threads that it watches.
        recorded: Spans that were recorded.
        failures: Errors of the timeline itself, which it kept from the training.
        processes: Those that recorded; a span's `process` is an index into it.
        kept_steps: The last steps, one by one.
        began_s: When the first step of each rank began, kept or not, from the begin of the first process.
        spans: The spans of these, and those that run.
    """

    steps: int
    wall_s: float
    phases: tuple[PhaseReport, ...]
    rewards: tuple[RewardReport, ...]
    reward_exposed_s: float
    reward_hidden_s: float
    tail_median_s: float | None
    tail_p90_s: float | None
    tail_total_s: float
    tail_ratio: float | None
    most_in_flight: int
    idle_s: float
    overhead_s: float
    recorded: int
    failures: int
    processes: tuple[Process, ...]
    kept_steps: tuple[StepReport, ...]
    began_s: Mapping[int, float]
    spans: tuple[Span, ...] = field(repr=False, compare=False)
    until_ns: int = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the spans, of what `json.dumps` takes."""
        left_out = ("spans", "until_ns")
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: _plain(value) for name, value in kept.items()}

    def chrome_trace(self) -> list[dict[str, Any]]:
        """The spans and steps as trace events, which Perfetto and Chrome open once written as JSON.

        One process for each that recorded; a row for each thread, and further ones where asyncio tasks of
        the thread overlap. Times are microseconds from the first begin.

        Source: the Trace Event Format: complete events ("X") and names ("M").
        """
        return trace_events(self.spans, self.processes, self._step_bars(), self.until_ns)

    def as_table(self) -> Table:
        """A table of phases and rewards for a terminal."""
        from rich.table import Table

        table = Table(title=self._title(), caption=self._caption(), caption_justify="left")
        table.add_column("phase")
        for heading in ("calls", "median", "p90", "total", "share", "exposed", "hidden", "drain"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for group in (self.phases, self.rewards):
            for row in group:
                table.add_row(*_cells(row), row.note)
            table.add_section()
        return table

    def rewards_table(self) -> Table:
        """A table of what each reward did: texts, tokens, caches, the device, and its stages."""
        from rich.table import Table

        table = Table(title="Rewards")
        table.add_column("reward")
        headings = ("calls", "texts", "unique", "tokens", "known", "hit rate", "at once", "device")
        for heading in (*headings, "stages"):
            table.add_column(heading, justify="left" if heading == "stages" else "right")
        for row in self.rewards:
            stages = ", ".join(f"{name} {time_text(value)}" for name, value in row.stages.items())
            counts = (row.count, row.texts, row.unique_texts, row.tokens, row.cache_hits)
            cells = ["–" if count is None else str(count) for count in counts]
            rate = "–" if row.hit_rate is None else f"{row.hit_rate:.1%}"
            table.add_row(row.name, *cells, rate, str(row.most_in_flight), time_text(row.device_s), stages)
        return table

    def _title(self) -> str:
        ranks = len({process.rank for process in self.processes})
        where = f" of {ranks} ranks" if ranks > 1 else ""
        return f"{self.steps or 'No'} steps marked{where}, {time_text(self.wall_s)}"

    def _caption(self) -> str:
        lines = [
            f"rewards: {time_text(self.reward_exposed_s)} exposed, {time_text(self.reward_hidden_s)} hidden, "
            f"{self.most_in_flight} at once at most"
        ]
        if self.tail_ratio is not None:
            lines.append(
                f"tail: {time_text(self.tail_median_s)} median, {time_text(self.tail_p90_s)} p90, "
                f"{self.tail_ratio:.1%} of the steps"
            )
        lines.append(f"nothing recorded: {time_text(self.idle_s)} ({_part(self.idle_s, self.wall_s):.1%})")
        lines.append(
            f"the profiler itself: {time_text(self.overhead_s)} ({_part(self.overhead_s, self.wall_s):.2%}), "
            f"{time_text(_part(self.overhead_s, self.recorded))} a call"
        )
        if self.failures:
            lines.append(f"errors of the profiler: {self.failures}; the figures may lack something")
        return "\n".join(lines)

    def _step_bars(self) -> list[tuple[int, str, int, int]]:
        """Rank, name, begin and end of the kept steps, in nanoseconds."""
        origin = min((process.began_ns for process in self.processes), default=0)
        return [
            (
                step.rank,
                f"step {step.number}",
                origin + round(step.begin_s * 1e9),
                origin + round((step.begin_s + step.wall_s) * 1e9),
            )
            for step in self.kept_steps
        ]


def quantile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile, between neighbours on a straight line; ``None`` of nothing.

    Example:
        >>> quantile([1.0, 2.0, 4.0], 0.75)
        3.0
    """
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _cells(row: PhaseReport) -> list[str]:
    times = [time_text(value) for value in (row.median_s, row.p90_s, row.total_s)]
    return [
        row.label,
        str(row.count),
        *times,
        f"{row.share:.1%}",
        time_text(row.exposed_s),
        time_text(row.hidden_s),
        time_text(row.drain_s),
    ]


def _part(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(entry) for entry in value]
    return value
