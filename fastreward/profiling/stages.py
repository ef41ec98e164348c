"""Stages of a reward: where the host's time goes within one call."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Final

from fastreward.profiling.spans import Span

current_span: Final[ContextVar[Span | None]] = ContextVar("fastreward_span", default=None)
"""The innermost span around the code that runs, in its thread or task."""


class _Shared:
    """A lock, for several threads may work for one call; a forked process takes a new one."""

    lock = threading.Lock()


def renew_lock() -> None:
    """Forget the lock, which another thread may have held when this process was forked."""
    _Shared.lock = threading.Lock()


class stage:  # noqa: N801  # it is used as a function
    """Charge the host's time of a block to the reward that runs around it, if a timeline watches one.

    Without one it costs a look-up. Stages of several threads add up, so that their sum can exceed the call's
    time. A thread belongs to a call if it was started with a copy of its context
    (`contextvars.copy_context`), as `asyncio.to_thread` does. On a GPU it is the time to queue work, not the
    time that the work takes.

    Args:
        name: "tokenise", "copy", "encode", "score", "wait", or another.

    Example:
        >>> with stage("tokenise"):
        ...     ids = [ord(letter) for letter in "a text"]
    """

    __slots__ = ("_begin", "_name", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._span = current_span.get()
        if self._span is not None:
            self._begin = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        seconds = time.perf_counter() - self._begin
        with _Shared.lock:
            stages = self._span.counts.stages
            stages[self._name] = stages.get(self._name, 0.0) + seconds
