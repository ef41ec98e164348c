"""Phases of which one at a time is open: an inner one interrupts the one around it, so that they add up."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from fastreward.profiling.opened import Open
from fastreward.profiling.recorder import Recorder
from fastreward.profiling.spans import Kind
from fastreward.profiling.timeline import Timeline

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE: Final = -1
"""The place of a phase that was begun in another thread, where nothing is interrupted."""

Entry: TypeAlias = tuple[Kind, str] | None
"""A phase, or ``None`` for an interruption that is recorded by someone else."""


def guarded(
    method: Callable[Concatenate[ExclusivePhases, P], int],
) -> Callable[Concatenate[ExclusivePhases, P], int]:
    """Keep errors from the training, as the recorder does with its own."""

    @functools.wraps(method)
    def call(self: ExclusivePhases, /, *args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever it is: a profiler may not end a training
            self.recorder.fail(error)
            return ELSEWHERE

    return call


class ExclusivePhases:
    """The phases of the thread that trains, each without what is within it.

    A phase that is interrupted is recorded in pieces, and each of them counts as one of its runs. What other
    threads do is left out.

    Args:
        timeline: Where they are recorded.

    Attributes:
        recorder: The timeline's.

    Example:
        >>> timeline = Timeline()
        >>> phases = ExclusivePhases(timeline)
        >>> outer = phases.push("prepare")
        >>> inner = phases.push("generate")
        >>> phases.pop(inner), phases.pop(outer)
        (1, 0)
        >>> {phase.name: phase.count for phase in timeline.report().phases} == {"prepare": 2, "generate": 1}
        True
    """

    def __init__(self, timeline: Timeline) -> None:
        self.recorder: Recorder = timeline._recorder
        self._entries: list[Entry] = []
        self._shown: Entry = None
        self._open: Open | None = None
        self._thread: int | None = None

    @guarded
    def push(self, name: str | None, *, waits: bool = False) -> int:
        """Begin a phase and interrupt the one around it.

        Args:
            name: What to record it under; ``None`` interrupts alone.
            waits: As in `Timeline.phase`.

        Returns:
            Its place, for `pop`.
        """
        thread = threading.get_ident()
        if self._entries and thread != self._thread:
            return ELSEWHERE
        self._thread = thread
        self._entries.append(None if name is None else ("wait" if waits else "phase", name))
        self._show()
        return len(self._entries) - 1

    @guarded
    def pop(self, place: int) -> int:
        """End the phase at a place, and what was begun in it and not ended; go on with the one around.

        Returns:
            The place.
        """
        if place != ELSEWHERE:
            del self._entries[place:]  # there may be nothing: `clear` came in between
            self._show()
        return place

    def clear(self) -> None:
        """End them all."""
        self.pop(0)

    def holds(self, *names: str) -> bool:
        """Whether one of these phases is open or interrupted."""
        return any(entry is not None and entry[1] in names for entry in self._entries)

    def around(self, name: str, function: Callable[P, R], *, waits: bool = False) -> Callable[P, R]:
        """Make a function of which each call is a phase.

        Args:
            name: As in `push`.
            function: What is called.
            waits: As in `push`.
        """

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            place = self.push(name, waits=waits)
            try:
                return function(*args, **kwargs)
            finally:
                self.pop(place)

        return call

    def _show(self) -> None:
        entry = self._entries[-1] if self._entries else None
        if entry == self._shown:
            return
        if self._open is not None:
            self.recorder.end(self._open, None)
        self._shown = entry
        self._open = None if entry is None else self.recorder.begin(*entry)


def call_quietly(recorder: Recorder, function: Callable[..., Any], *args: Any) -> Any:
    """Call something that serves the profiler alone: what it raises is the profiler's own error.

    Args:
        recorder: Counts the error, and says the first.
        function: What is called.
        *args: With what.

    Returns:
        What it returns, or ``None``.
    """
    try:
        return function(*args)
    except Exception as error:  # as in `guarded`
        recorder.fail(error)
        return None
