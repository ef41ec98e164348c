"""What a recorder needs to know of a span that runs, and how it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastreward.profiling.counting import ScorerWatch
from fastreward.profiling.devices import DeviceClock
from fastreward.profiling.spans import Outcome, Span

CANCELLED: Final = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    GeneratorExit,
    KeyboardInterrupt,
)
"""How a call ends that neither returns nor fails."""


@dataclass(frozen=True)
class Options:
    """The arguments of a `Timeline`."""

    generation: tuple[str, ...]
    folder: Path | None
    rank: int | None
    device_clock: DeviceClock | None
    synchronize: bool
    keep_steps: int
    keep_spans: int


@dataclass(slots=True)
class Open:
    """A span that runs, and what is needed to end it.

    Attributes:
        span: The span.
        before: What the reward's scorers had counted before the call; ``None`` if that is not known.
        scorers: Reads it; ``None`` of a phase, and of a function, which holds none.
        token: How to leave the timeline's context; ``None`` once it is left.
        stage_token: The same for that of stages.
    """

    span: Span
    before: Mapping[int, Any] | None = None
    scorers: ScorerWatch | None = None
    token: Token[Span | None] | None = None
    stage_token: Token[Span | None] | None = None


def outcome_of(error: BaseException | None) -> Outcome:
    """How a span ended, by what it raised.

    Example:
        >>> outcome_of(None), outcome_of(ValueError()), outcome_of(asyncio.CancelledError())
        ('done', 'raised', 'cancelled')
    """
    if error is None:
        return "done"
    return "cancelled" if isinstance(error, CANCELLED) else "raised"


running_loop: Final = asyncio._get_running_loop
"""The event loop that runs in this thread, if there is one: to be told by an exception takes far longer."""


def task_number() -> int | None:
    """A number of the asyncio task that runs here, or ``None`` outside of one."""
    loop = running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return None if task is None else id(task)


class Here(threading.local):
    """What a thread finds out about itself at its first span, once.

    Attributes:
        known: The thread, whose name may change, and the operating system's number of it, which may not.
    """

    def __init__(self) -> None:
        self.known = threading.current_thread(), threading.get_native_id()
