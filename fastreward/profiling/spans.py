"""What a timeline records: spans of work, steps, and the process in which they were."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

Kind = Literal["phase", "wait", "reward"]
Outcome = Literal["running", "done", "raised", "cancelled"]

KINDS: Final[tuple[Kind, ...]] = ("phase", "wait", "reward")


@dataclass(slots=True)
class Counts:
    """What calls of a reward were about, summed.

    Attributes:
        texts: Texts handed over.
        unique_texts: Distinct ones of each call.
        none: Texts whose reward was ``None``, alone or because the call returned ``None`` for all.
        scorer: What the reward's scorers counted meanwhile, by the names of `ScorerStats`.
        stages: Seconds of host time in each `stage`.
    """

    texts: int = 0
    unique_texts: int = 0
    none: int = 0
    scorer: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For a file; another thread may be counting."""
        return {
            "texts": self.texts,
            "unique_texts": self.unique_texts,
            "none": self.none,
            "scorer": dict(self.scorer),
            "stages": dict(self.stages),
        }

    def add(self, other: Counts) -> None:
        """Add another call's."""
        self.texts += other.texts
        self.unique_texts += other.unique_texts
        self.none += other.none
        for name, count in other.scorer.items():
            self.scorer[name] = self.scorer.get(name, 0) + count
        for name, seconds in other.stages.items():
            self.stages[name] = self.stages.get(name, 0.0) + seconds


@dataclass(slots=True, eq=False)
class Span:
    """One run of a phase or one call of a reward.

    Attributes:
        id: Its number in the process.
        kind: A phase, a wait within one, or a reward.
        name: What it is reported under.
        begin_ns: When it began, in nanoseconds of the shared clock (see `Process`).
        thread: The operating system's number of the thread.
        thread_name: Its name.
        task: Number of the asyncio task in the process, or ``None`` outside of one.
        parent: The innermost span that was open around it, in this task or in the one that made it.
        counts: Of a reward, what the call was about.
        parent_id: The parent's number, which stays when the parent is forgotten.
        owner: The recording that it belongs to.
        marks: Where the device's queue stood at its begin; once it has ended, a pair of that and the same at
            its end, until the times are known.
        end_ns: When it ended, or ``None`` while it runs.
        outcome: How it ended.
        device_s: Seconds on the device's stream from its begin to its end, or ``None`` if unknown.
        drain_s: Seconds of it in which the device still worked off what was queued before, or ``None``.
        process: Index of its process in a report.
    """

    id: int
    kind: Kind
    name: str
    begin_ns: int
    thread: int
    thread_name: str
    task: int | None = None
    parent: Span | None = None
    counts: Counts = field(default_factory=Counts)
    parent_id: int | None = None
    owner: object = None
    marks: Any = None
    end_ns: int | None = None
    outcome: Outcome = "running"
    device_s: float | None = None
    drain_s: float | None = None
    process: int = 0

    def ancestors(self) -> Iterator[Span]:
        """The spans around it, the innermost first."""
        span = self.parent
        while span is not None:
            yield span
            span = span.parent

    def as_json(self) -> dict[str, Any]:
        """What a file needs; the parent by its number."""
        return {
            "event": "span",
            "id": self.id,
            "parent_id": self.parent_id,
            "kind": self.kind,
            "name": self.name,
            "begin_ns": self.begin_ns,
            "end_ns": self.end_ns,
            "thread": self.thread,
            "thread_name": self.thread_name,
            "task": self.task,
            "outcome": self.outcome,
            "counts": self.counts.as_json(),
            "device_s": self.device_s,
            "drain_s": self.drain_s,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Span:
        """Read what `as_json` wrote; the parent is left out."""
        names = {f.name for f in fields(cls)} - {"parent", "counts", "process", "owner", "marks"}
        span = cls(**{name: entry[name] for name in names})
        span.counts = Counts(**entry["counts"])
        return span


@dataclass(slots=True, eq=False)
class Step:
    """A training step.

    Attributes:
        number: As the trainer counts.
        begin_ns: When it began.
        end_ns: When it ended, or ``None`` while it runs.
    """

    number: int
    begin_ns: int
    end_ns: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"event": "step", **asdict(self)}


@dataclass(frozen=True)
class Process:
    """Where spans were recorded.

    All times are nanoseconds since 1970, as the machine's clock had it when the process began to record, and
    from then on by `time.perf_counter`, which no adjustment makes jump. Processes of one machine so agree
    within microseconds, those of several as well as their clocks do.

    Attributes:
        rank: Of the trainer's process, or of the one it works for.
        pid: The operating system's number.
        host: The machine.
        began_ns: When it began to record.
    """

    rank: int
    pid: int
    host: str
    began_ns: int

    @classmethod
    def here(cls, rank: int | None, began_ns: int) -> Process:
        """This process; its rank is that of the launcher (``RANK``) unless it is given."""
        if rank is None:
            value = os.environ.get("RANK", "0")
            rank = int(value) if value.isdecimal() else 0
        return cls(rank, os.getpid(), socket.gethostname(), began_ns)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"event": "process", "version": FILE_VERSION, **asdict(self)}


FILE_VERSION: Final = 1


def clock_offset_ns(tries: int = 9) -> int:
    """What to add to `time.perf_counter_ns` for nanoseconds since 1970: the least disturbed of some tries.

    Example:
        >>> abs(time.perf_counter_ns() + clock_offset_ns() - time.time_ns()) < 10_000_000
        True
    """
    best = None
    for _ in range(tries):
        before = time.perf_counter_ns()
        wall = time.time_ns()
        after = time.perf_counter_ns()
        if best is None or after - before < best[0]:
            best = after - before, wall - (before + after) // 2
    assert best is not None
    return best[1]
