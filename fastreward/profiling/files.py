"""A timeline's events in a folder: a file of JSON lines for each process, and how they are read again."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from fastreward.errors import InputError
from fastreward.profiling.spans import FILE_VERSION, Process, Span, Step

SUFFIX: Final = ".timeline.jsonl"


class EventFile:
    """The file of one process. Events are gathered at once and written when `flush` is called.

    Args:
        folder: Where; it is made if it is not there.
        process: Whose.
    """

    def __init__(self, folder: Path, process: Process) -> None:
        self.path = folder / f"rank{process.rank}-pid{process.pid}-{process.began_ns}{SUFFIX}"
        self._process = process
        self._pending: deque[Span | Step] = deque()  # other threads append meanwhile
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def add(self, event: Span | Step) -> None:
        """Have an event written that is over."""
        self._pending.append(event)

    def flush(
        self,
        ready: Callable[[Span], bool],
        running: Iterable[Span | Step],
        state: dict[str, Any],
        *,
        last: bool = False,
    ) -> None:
        """Write what is pending, and what runs now, which later lines supersede.

        Args:
            ready: Says of a span whether it is complete; one that is not waits for the next time.
            running: Spans and steps that have begun and not ended.
            state: Numbers of the whole process.
            last: Write all, and close the file.

        Raises:
            TypeError: If an event holds what JSON has not; it is left out, and the others are written.
            ValueError: Likewise.
        """
        wrong: list[Exception] = []
        with self._lock:
            now = [one.as_json() for one in running if _line(one, wrong)]
            lines = []
            for _ in range(len(self._pending)):
                event = self._pending.popleft()
                if last or not isinstance(event, Span) or ready(event):
                    lines.append(_line(event, wrong))
                else:
                    self._pending.append(event)
            lines.append(json.dumps({"event": "state", "running": now, **state}) + "\n")
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
                lines.insert(0, json.dumps(self._process.as_json()) + "\n")
            self._file.write("".join(lines))
            self._file.flush()
            if last:
                self._file.close()
                self._file = None
        if wrong:
            raise wrong[0]


def _line(event: Span | Step, wrong: list[Exception]) -> str:
    """A line of the file; an event that JSON cannot hold is "", and why goes to `wrong`."""
    try:
        return json.dumps(event.as_json()) + "\n"
    except (TypeError, ValueError) as error:
        wrong.append(error)
        return ""


@dataclass
class Recording:
    """What a process has written.

    Attributes:
        process: The process.
        spans: In the order in which they began; those that run have no end.
        steps: Likewise.
        until_ns: When it last wrote.
        overhead_s: Time that the timeline took there.
        failures: Errors of the timeline itself.
        recorded: Spans that began.
        broken_lines: Lines that cannot be read, as where a process was killed while it wrote.
    """

    process: Process
    spans: list[Span] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    until_ns: int = 0
    overhead_s: float = 0.0
    failures: int = 0
    recorded: int = 0
    broken_lines: int = 0


def read_folder(folder: Path) -> list[Recording]:
    """Read all processes of a run, by rank and begin.

    Raises:
        InputError: If no timeline wrote there, or a file is of another version.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    recordings = [found for path in paths if (found := _read(path)) is not None]
    if not recordings:
        raise InputError(
            f"a folder with files *{SUFFIX}",
            str(folder) if folder.exists() else f"{folder}, which is not there",
            "Pass the folder that the timelines were given, after the run.",
        )
    return sorted(recordings, key=lambda one: (one.process.rank, one.process.began_ns))


def _read(path: Path) -> Recording | None:
    """Read a file; ``None`` if it does not even say whose it is."""
    recording: Recording | None = None
    broken = 0
    ended: dict[int, Span] = {}
    steps: dict[int, Step] = {}
    running: Sequence[dict[str, Any]] = ()
    for entry in _lines(path):
        if entry is None:
            broken += 1
        elif entry["event"] == "process":
            recording = recording or Recording(_process(entry, path))
        elif entry["event"] == "span":
            ended[entry["id"]] = Span.from_json(entry)
        elif entry["event"] == "step":
            steps[entry["begin_ns"]] = _step(entry)
        elif entry["event"] == "state" and recording is not None:
            running = entry["running"]
            recording.until_ns = entry["until_ns"]
            recording.overhead_s = entry["overhead_s"]
            recording.failures = entry["failures"]
            recording.recorded = entry["recorded"]
    if recording is None:
        return None
    for entry in running:
        if entry["event"] == "step":
            steps.setdefault(entry["begin_ns"], _step(entry))
        elif entry["id"] not in ended:
            ended[entry["id"]] = Span.from_json(entry)
    for span in ended.values():
        span.parent = None if span.parent_id is None else ended.get(span.parent_id)
    recording.spans = sorted(ended.values(), key=lambda span: (span.begin_ns, span.id))
    recording.steps = sorted(steps.values(), key=lambda step: step.begin_ns)
    recording.broken_lines = broken
    return recording


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The entries of a file; ``None`` for a line that is cut off."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield entry if isinstance(entry, dict) and "event" in entry else None


def _process(entry: dict[str, Any], path: Path) -> Process:
    if entry["version"] != FILE_VERSION:
        raise InputError(
            f"events of version {FILE_VERSION}",
            f"version {entry['version']} in {path.name}",
            "Read them with the version of fastreward that wrote them.",
        )
    return Process(entry["rank"], entry["pid"], entry["host"], entry["began_ns"])


def _step(entry: dict[str, Any]) -> Step:
    return Step(entry["number"], entry["begin_ns"], entry["end_ns"])
