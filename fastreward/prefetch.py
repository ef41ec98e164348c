"""Work that is prepared in a thread while the work before it is being used."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextvars import copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Generic, TypeVar

from fastreward.profiling.stages import stage

Item = TypeVar("Item")

AHEAD: Final = 2
"""Items that are made ahead. One would do if all took the same time; two even out what differs."""

TURN_S: Final = 1e-4
"""For how long a thread may keep the interpreter that another one waits for, while items are made ahead.

Python's own 5 ms are longer than an item may take: who uses the items would come back that late from every
wait and every launch, with nothing to do meanwhile for the device.
"""


def prefetched(items: Generator[Item]) -> Generator[Item]:
    """Yield what a generator yields, which a thread makes ahead, in a copy of the caller's context.

    `AHEAD` are made ahead, never more, so that memory stays bounded. Where the generator raises, the
    exception comes out in its turn. Who stops early closes the generator, once what it is making is made.
    Meanwhile threads take turns of `TURN_S` in this process.

    Example:
        >>> list(prefetched(number * number for number in (1, 2, 3)))
        [1, 4, 9]
    """
    with _short_turns:
        maker = _Maker(items)
        try:
            while True:
                with stage("wait"):
                    made = maker.made.get()
                if isinstance(made, _End):
                    if made.error is not None:
                        raise made.error
                    return
                maker.room.put(None)
                yield made
        finally:
            maker.stop()


class _End:
    """Behind the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Maker(Generic[Item]):
    """A thread that makes items while there is room, without being told for each, which would take time.

    Both sides talk by queues that are written in C, and hold no lock which the other could meet.
    """

    def __init__(self, items: Generator[Item]) -> None:
        self.made: SimpleQueue[Item | _End] = SimpleQueue()
        self.room: SimpleQueue[None] = SimpleQueue()
        for _ in range(AHEAD):
            self.room.put(None)
        self._stopped = False
        context = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._make, items), daemon=True)
        self._thread.name = "fastreward-prefetch"
        self._thread.start()

    def _make(self, items: Generator[Item]) -> None:
        error: BaseException | None = None
        try:
            while True:
                self.room.get()
                if self._stopped:
                    items.close()
                    break
                item = next(items)
                self.made.put(item)
        except StopIteration:
            pass
        except BaseException as raised:  # it is raised where the items are used
            error = raised
        self.made.put(_End(error))

    def stop(self) -> None:
        self._stopped = True
        self.room.put(None)
        self._thread.join()


class _ShortTurns:
    """Turns of `TURN_S` at most while anybody is within; then those of before, unless they were changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = self._set = 0.0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_all)

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(TURN_S, self._before))
                self._set = sys.getswitchinterval()  # in whole microseconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._users == 1:
                self._restore()
            self._users = max(0, self._users - 1)  # in a forked process, those of its parent have left

    def _restore(self) -> None:
        if sys.getswitchinterval() == self._set:
            sys.setswitchinterval(self._before)

    def _leave_all(self) -> None:
        """Begin anew in a forked process, where the threads that make items are not."""
        self._lock = threading.Lock()
        if self._users:
            self._restore()
        self._users = 0


_short_turns: Final = _ShortTurns()
