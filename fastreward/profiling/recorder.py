"""Records spans as they begin and end, from any thread and task, and keeps its own errors to itself."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from time import perf_counter_ns
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from fastreward.profiling.counting import ScorerWatch, count_none, count_texts
from fastreward.profiling.devices import DeviceTimer
from fastreward.profiling.files import EventFile
from fastreward.profiling.ledger import Ledger, Totals
from fastreward.profiling.opened import Here, Open, Options, outcome_of, running_loop, task_number
from fastreward.profiling.report import Report, StepReport
from fastreward.profiling.spans import Counts, Kind, Process, Span, Step, clock_offset_ns
from fastreward.profiling.stages import current_span, renew_lock
from fastreward.profiling.summary import Own, Rank, latest_step, summarise
from fastreward.profiling.wrapping import Watched

P = ParamSpec("P")
R = TypeVar("R")

WRITTEN_EVERY_S: Final = 1.0
"""Between writes to the folder: what a killed process loses at most."""


def guarded(method: Callable[Concatenate[Recorder, P], R]) -> Callable[Concatenate[Recorder, P], R | None]:
    """Keep errors of the recorder from the training: they are counted, and said once."""

    @functools.wraps(method)
    def call(self: Recorder, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever it is: a profiler may not end a training
            self.fail(error)
            return None

    return call


class Recorder:
    """What a timeline does behind its face.

    Args:
        options: The timeline's arguments.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._current: ContextVar[Span | None] = ContextVar("fastreward_timeline", default=None)
        self.start()
        _recorders.add(self)
        _watch_forks()

    def start(self) -> None:
        """Begin with nothing recorded, in this process."""
        options = self.options
        self._lock = threading.RLock()  # a collected object may come back here while the lock is held
        self._offset_ns = clock_offset_ns()
        self._ledger = Ledger(options.generation, Totals())
        self._ids = itertools.count()
        self._here = Here()  # anew after a fork: threads have other numbers there
        self._running: dict[int, Span] = {}
        self._step: Step | None = None
        self._step_number = 0
        self._overhead_ns = 0
        self._until_full = options.keep_spans  # that many spans may begin before there can be too many
        self._recorded = 0
        self.failures = 0
        self.process = Process.here(options.rank, self.now())
        clock = options.device_clock
        self._timer = None if clock is None else DeviceTimer(clock, self.fail)
        self._synchronizes = options.synchronize  # but in an event loop, where all other tasks would wait
        self._file = None if options.folder is None else EventFile(options.folder, self.process)
        self._stop = threading.Event()
        self._is_writing = False

    def now(self) -> int:
        """Nanoseconds of the shared clock."""
        return perf_counter_ns() + self._offset_ns

    # ------------------------------------------------------------------ spans
    #
    # These run at each begin and end, mostly after work that has taken the processor's caches: there a
    # function more costs a microsecond, so they read the clock themselves and do without `guarded`.

    def begin(self, kind: Kind, name: str) -> Open | None:
        """Begin a phase."""
        try:
            return self._begin(kind, name, perf_counter_ns() + self._offset_ns, Counts(0, 0, 0, {}, {}))
        except Exception as error:  # as in `guarded`
            self.fail(error)
            return None

    def end(self, opened: Open | None, error: BaseException | None) -> None:
        """End a phase."""
        if opened is None:
            return
        try:
            if self._synchronizes:
                self._wait_for(opened)
            self._end(opened, error, perf_counter_ns() + self._offset_ns)
        except Exception as own:  # as in `guarded`
            self.fail(own)

    def begin_call(self, watched: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Open | None:
        """Begin a call of a reward."""
        came_ns = perf_counter_ns() + self._offset_ns
        counts, scorers, before = Counts(0, 0, 0, {}, {}), watched.scorers, None
        try:
            counts.texts, counts.unique_texts = count_texts(watched.find_texts(*args, **kwargs))
            if scorers is not None:
                before = scorers.read()
        except Exception as error:  # as in `guarded`; without its counts, a call is still timed
            self.fail(error)
        try:
            return self._begin("reward", watched.__name__, came_ns, counts, scorers, before)
        except Exception as error:  # as in `guarded`
            self.fail(error)
            return None

    def end_call(self, opened: Open | None, result: object, error: BaseException | None) -> None:
        """End a call of a reward, once."""
        if opened is None or opened.span.end_ns is not None:
            return
        try:
            if self._synchronizes:
                self._wait_for(opened)
            end_ns = perf_counter_ns() + self._offset_ns
            counts = opened.span.counts
            try:
                if error is None:
                    counts.none = count_none(result, counts.texts)
                if opened.scorers is not None and opened.before is not None:
                    opened.scorers.add(opened.before, counts)
            except Exception as own:  # as in `begin_call`
                self.fail(own)
            self._end(opened, error, end_ns)
        except Exception as own:  # as in `guarded`
            self.fail(own)

    @guarded
    def enter_call(self, opened: Open | None) -> None:
        """Go on with a call in another context."""
        if opened is not None:
            opened.token = self._current.set(opened.span)
            opened.stage_token = current_span.set(opened.span)

    @guarded
    def leave_call(self, opened: Open | None) -> None:
        """Leave a call that goes on elsewhere."""
        if opened is not None:
            self._leave(opened)

    def _begin(
        self,
        kind: Kind,
        name: str,
        came_ns: int,
        counts: Counts,
        scorers: ScorerWatch | None = None,
        before: Mapping[int, Any] | None = None,
    ) -> Open:
        ledger, offset_ns = self._ledger, self._offset_ns
        parent = self._current.get()
        while parent is not None and (parent.end_ns is not None or parent.owner is not ledger):
            parent = parent.parent
        thread, thread_id = self._here.known
        task = None if running_loop() is None else task_number()
        synchronizes = self._synchronizes and task is None
        timer = self._timer
        marks = None if timer is None or synchronizes else timer.mark(perf_counter_ns() + offset_ns)
        number, up = next(self._ids), None if parent is None else parent.id
        # By place: names would cost a dictionary.
        span = Span(number, kind, name, 0, thread_id, thread.name, task, parent, counts, up, ledger, marks)
        with self._lock:
            span.begin_ns = begin_ns = perf_counter_ns() + offset_ns
            ledger.add_span(span)
            self._running[number] = span
            self._recorded += 1
            self._overhead_ns += begin_ns - came_ns
            self._until_full -= 1
            if self._until_full < 0:
                self._keep_few()
        if self._file is not None and not self._is_writing:
            self._write_from_now_on()
        opened = Open(span, before, scorers, self._current.set(span), current_span.set(span))
        if synchronizes and timer is not None and timer.synchronize():
            span.drain_s = (self.now() - begin_ns) / 1e9
        return opened

    def _end(self, opened: Open, error: BaseException | None, end_ns: int) -> None:
        span = opened.span
        self._leave(opened)
        if span.end_ns is not None or span.owner is not self._ledger:
            return  # begun before this process was forked off, or ended already
        span.outcome = "done" if error is None else outcome_of(error)
        if span.marks is not None and self._timer is not None:
            span.marks = span.marks, self._timer.mark(end_ns)
        with self._lock:
            span.end_ns = end_ns  # last: who reads it finds the rest there
            del self._running[span.id]
            self._overhead_ns += perf_counter_ns() + self._offset_ns - end_ns
        if self._file is not None:
            self._file.add(span)

    def _leave(self, opened: Open) -> None:
        token, stage_token = opened.token, opened.stage_token
        if token is None or stage_token is None:
            return
        opened.token = opened.stage_token = None
        try:
            self._current.reset(token)
            current_span.reset(stage_token)
        except ValueError:  # a coroutine that is closed by another one: its context is gone
            return

    def _wait_for(self, opened: Open) -> None:
        if self._timer is not None and opened.span.task is None:
            self._timer.synchronize()

    # ------------------------------------------------------------------ steps

    @guarded
    def begin_step(self, number: int | None) -> Step:
        """End the step that runs, if there is one, and begin the next."""
        with self._lock:
            begin_ns = self.now()
            self._end_step(begin_ns)
            self._step_number = self._step_number + 1 if number is None else number
            self._step = step = Step(self._step_number, begin_ns)
            self._ledger.add_step(step)
            self._keep_few()
            self._overhead_ns += self.now() - begin_ns
        self._write_from_now_on()
        return step

    @guarded
    def end_step(self, step: Step | None) -> None:
        """End a step if it still runs; ``None`` ends whichever runs."""
        with self._lock:
            if step is None or step is self._step:
                self._end_step(self.now())

    def _end_step(self, end_ns: int) -> None:
        if self._step is not None:
            self._step.end_ns = end_ns
            if self._file is not None:
                self._file.add(self._step)
            self._step = None

    def _keep_few(self) -> None:
        until_ns = self._ledger.when_few(self.options.keep_steps, self.options.keep_spans)
        if until_ns is not None:
            for span in self._ledger.spans:
                if span.begin_ns >= until_ns:
                    break
                self._resolve(span)
            self._ledger.settle(until_ns)
        self._until_full = self.options.keep_spans - len(self._ledger)

    def _resolve(self, span: Span) -> bool:
        """Whether a span's times are known, or never will be."""
        return self._timer is None or span.marks is None or self._timer.resolve(span)

    # ------------------------------------------------------------------ what comes of it

    def report(self) -> Report:
        """Report on this process up to now."""
        with self._lock:
            now_ns = self.now()
            for span in self._ledger.spans:
                self._resolve(span)
            ledger = self._ledger.copy()
            own = Own(self._overhead_ns / 1e9, self._recorded, self.failures)
        rank = Rank(self.process.rank, ledger, ledger.last_ns(now_ns))
        return summarise([rank], ledger.totals, (self.process,), own)

    @guarded
    def latest_step(self) -> StepReport | None:
        """Report on the step that runs, up to now, or else on the last one."""
        with self._lock:
            steps, spans, now_ns = list(self._ledger.steps), self._ledger.spans, self.now()
        return latest_step(steps, spans, self.process, self.options.generation, now_ns)

    @guarded
    def flush(self, *, last: bool = False) -> None:
        """Write what has happened to the folder, if there is one."""
        file = self._file
        if file is None:
            return
        with self._lock:
            running: list[Span | Step] = list(self._running.values())
            running += [] if self._step is None else [self._step]
            state = {
                "until_ns": self.now(),
                "overhead_s": self._overhead_ns / 1e9,
                "failures": self.failures,
                "recorded": self._recorded,
            }
        try:
            file.flush(self._resolve, running, state, last=last)
        except OSError:
            self._file = None  # a full disk stays full; what is in memory is still reported
            raise

    def close(self) -> None:
        """End the step, write everything, and stop writing."""
        self.end_step(None)
        self._stop.set()
        self.flush(last=True)
        self._file = None

    def fail(self, error: Exception) -> None:
        """Count an error of the recorder's own, and say the first."""
        self.failures += 1
        if self.failures > 1:
            return
        try:
            warnings.warn(
                f"The timeline has an error, which it keeps from the training: {error!r}. Its figures may "
                "lack something; `report().failures` counts on.",
                RuntimeWarning,
                stacklevel=2,
            )
        except RuntimeWarning:  # where warnings are made errors, this one is still none of the training's
            return

    def _write_from_now_on(self) -> None:
        if self._file is None or self._is_writing:
            return
        with self._lock:
            if self._is_writing or self._stop.is_set():
                return
            self._is_writing = True
        arguments = (weakref.ref(self), self._stop)
        threading.Thread(target=_write, args=arguments, name="fastreward-timeline", daemon=True).start()
        _at_exit(weakref.ref(self), os.getpid())


def _write(recorder: weakref.ref[Recorder], stop: threading.Event) -> None:
    """Write now and then, off the threads that train."""
    while not stop.wait(WRITTEN_EVERY_S):
        if (alive := recorder()) is None:
            return
        alive.flush()
        del alive


def _at_exit(recorder: weakref.ref[Recorder], pid: int) -> None:
    """Have the rest written at this process's end: a worker of `multiprocessing` skips what `atexit` has."""
    atexit.register(_close, recorder, pid)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        # Its threads are joined later, and may be at work: the file stays open.
        Finalize(None, _write_now, (recorder, pid), exitpriority=-100)


def _write_now(recorder: weakref.ref[Recorder], pid: int) -> None:
    """Write what there is so far."""
    if (alive := recorder()) is not None and pid == os.getpid():
        alive.flush()


def _close(recorder: weakref.ref[Recorder], pid: int) -> None:
    """Write the rest when the interpreter ends."""
    if (alive := recorder()) is not None and pid == os.getpid():
        alive.close()


_recorders: Final[weakref.WeakSet[Recorder]] = weakref.WeakSet()


@functools.cache  # once a process
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    """A forked process records for itself: locks, files and threads are its parent's."""
    renew_lock()
    for recorder in list(_recorders):
        recorder.start()
