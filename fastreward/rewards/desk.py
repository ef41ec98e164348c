"""The desk at which a judge sits: a few runs at once, each with its time, and no endless wait."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

SLOWEST_BACKOFF_S: Final = 60.0

_Outcome: TypeAlias = tuple[float | None, str | None]  # a verdict, and why there is none
_CANCELLED: Final[_Outcome] = (None, "CancelledError: the judge was cancelled")


@dataclass
class Case:
    """One sample before the judge.

    Attributes:
        text: The completion's text.
        keywords: What the judge gets besides.
        verdict: What it said, a finite number; ``None`` if nothing.
        failure: Why it failed, the kind of failure before the first colon; ``None`` if it did not.
    """

    text: str
    keywords: dict[str, Any]
    verdict: float | None = None
    failure: str | None = None


@dataclass(eq=False)
class _Run:
    """One time that the judge is asked about a case."""

    case: Case
    attempt: int
    not_before: float = 0.0
    deadline: float = math.inf
    ended: bool = False
    lost: bool = False
    outcome: _Outcome = (None, None)
    cancel: Callable[[], object] = field(default=lambda: None)


class Desk:
    """Asks a judge about cases, at most so many at once over all calls.

    A place is taken when the judge is started and is free again when it has ended, not before: what has timed
    out still holds its place. All state is guarded by one condition, on which every call waits. A desk is of
    the process that made it: one that was forked has not the threads that would free its places.

    Args:
        judge: A function or coroutine function of a text and keywords.
        timeout_s: Seconds for one run.
        retries: How often a case is tried again.
        backoff_s: Seconds before the first retry; doubled for each further one, 60 at most.
        max_concurrency: Places.
    """

    def __init__(
        self,
        judge: Callable[..., Any],
        *,
        timeout_s: float,
        retries: int,
        backoff_s: float,
        max_concurrency: int,
    ) -> None:
        self._judge = judge
        self._timeout_s, self._retries, self._backoff_s = timeout_s, retries, backoff_s
        self._places = max_concurrency
        self._changed = threading.Condition()
        self._taken = 0
        self._lost = 0  # of the taken places, those whose run has timed out
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[_Outcome]] = set()
        self._is_async = _is_coroutine_function(judge)

    def hear(self, cases: Sequence[Case]) -> None:
        """Get a verdict or a failure for every case.

        Args:
            cases: Changed in place.
        """
        waiting = deque(_Run(case, attempt=0) for case in cases)
        running: list[_Run] = []
        try:
            with self._changed:
                hopeless_at = math.inf
                while waiting or running:
                    now = time.monotonic()
                    self._collect(running, waiting, now)
                    self._begin(waiting, running, now)
                    hopeless_at = self._hopeless_at(waiting, running, hopeless_at, now)
                    if now >= hopeless_at:
                        self._give_up(waiting)
                    elif waiting or running:
                        self._changed.wait(self._pause(waiting, running, hopeless_at))
        finally:
            with self._changed:  # an interrupt leaves runs behind, which nobody will collect
                for run in running:
                    self._lose(run)

    def _collect(self, running: list[_Run], waiting: deque[_Run], now: float) -> None:
        """Take what has ended and what has timed out from the running ones."""
        for run in list(running):
            if run.ended:
                verdict, failure = run.outcome
            elif now >= run.deadline:
                self._lose(run)
                verdict, failure = None, f"time-out: no verdict within {self._timeout_s:g} s"
            else:
                continue
            running.remove(run)
            if failure is not None and run.attempt < self._retries:
                delay = min(self._backoff_s * 2.0 ** min(run.attempt, 64), SLOWEST_BACKOFF_S)
                waiting.append(_Run(run.case, run.attempt + 1, not_before=now + delay))
            else:
                run.case.verdict, run.case.failure = verdict, failure

    def _begin(self, waiting: deque[_Run], running: list[_Run], now: float) -> None:
        """Start as many of the waiting ones as there are places."""
        for _ in range(len(waiting)):
            if self._taken >= self._places:
                return
            run = waiting.popleft()
            if run.not_before > now:
                waiting.append(run)
                continue
            run.deadline = now + self._timeout_s
            self._taken += 1
            try:
                self._start(run)
            except RuntimeError as error:  # the system has no thread to give
                run.outcome, run.ended, run.deadline = _failed(error), True, now
                self._taken -= 1
            running.append(run)

    def _hopeless_at(
        self, waiting: deque[_Run], running: list[_Run], hopeless_at: float, now: float
    ) -> float:
        """When to give up: every place was lost all the time since some time-out ago."""
        if not waiting or running or self._lost < self._places:
            return math.inf
        return min(hopeless_at, now + self._timeout_s)

    def _give_up(self, waiting: deque[_Run]) -> None:
        reason = f"no place: {self._places} runs of the judge have timed out and not ended"
        while waiting:
            waiting.popleft().case.failure = reason

    def _pause(self, waiting: deque[_Run], running: list[_Run], hopeless_at: float) -> float | None:
        """Seconds until something happens by itself; None if only another run's end can change anything."""
        times = [run.deadline for run in running]
        if self._taken < self._places:
            times += [run.not_before for run in waiting]
        soonest = min([*times, hopeless_at])
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    def _lose(self, run: _Run) -> None:
        """Stop waiting for a run; its place stays taken until it ends."""
        if not run.ended and not run.lost:
            run.lost = True
            self._lost += 1
            run.cancel()
            self._changed.notify_all()

    def _start(self, run: _Run) -> None:
        if self._is_async:
            loop = self._event_loop()
            loop.call_soon_threadsafe(self._start_task, run, loop)
        else:
            threading.Thread(target=self._ask, args=(run,), name="judge", daemon=True).start()

    def _start_task(self, run: _Run, loop: asyncio.AbstractEventLoop) -> None:
        """Run the judge as a task, from within the loop."""
        task = loop.create_task(self._ask_async(run.case))
        self._tasks.add(task)  # the loop itself holds none
        # Not at the coroutine's own end: one that is cancelled before it began does not come to that.
        task.add_done_callback(functools.partial(self._end_task, run))
        with self._changed:
            run.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if run.lost:  # the loop was busy for as long as the run had time
                run.cancel()

    def _ask(self, run: _Run) -> None:
        """Run the judge in this thread."""
        try:
            value = self._judge(run.case.text, **run.case.keywords)
            if inspect.isawaitable(value):  # a function that returns a coroutine
                value = asyncio.run(_awaited(value))
            outcome = _outcome(value)
        except BaseException as error:  # SystemExit as well: a judge has no say over more than its case
            outcome = _failed(error)
        self._end(run, outcome)

    async def _ask_async(self, case: Case) -> _Outcome:
        try:
            return _outcome(await self._judge(case.text, **case.keywords))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit as well: it would end the loop
            return _failed(error)

    def _end_task(self, run: _Run, task: asyncio.Task[_Outcome]) -> None:
        self._tasks.discard(task)
        self._end(run, _CANCELLED if task.cancelled() else task.result())

    def _end(self, run: _Run, outcome: _Outcome) -> None:
        with self._changed:
            run.outcome, run.ended = outcome, True
            self._taken -= 1
            self._lost -= run.lost
            self._changed.notify_all()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this desk, in a daemonic thread."""
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(loop,), name="judges", daemon=True).start()
            weakref.finalize(self, _stop_loop, loop, os.getpid())
        return self._loop


def _outcome(value: Any) -> _Outcome:
    """The number that a judge returned, or why it is none."""
    if value is None:
        return None, None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        return None, f"no number: {error}"
    return (number, None) if math.isfinite(number) else (None, f"no finite number: {number}")


def _failed(error: BaseException) -> _Outcome:
    try:
        reason = str(error)
    except Exception as another:  # the judge's own class, and its place must come back all the same
        reason = f"a message that raises {type(another).__name__}"
    return None, f"{type(error).__name__}: {reason}"


async def _awaited(value: Any) -> Any:
    return await value


def _is_coroutine_function(judge: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; partials and objects with an ``async def __call__`` included."""
    return inspect.iscoroutinefunction(judge) or inspect.iscoroutinefunction(type(judge).__call__)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _stop_loop(loop: asyncio.AbstractEventLoop, process: int) -> None:
    if process == os.getpid() and not loop.is_closed():  # a fork's copy wakes its parent's loop
        loop.call_soon_threadsafe(loop.stop)
