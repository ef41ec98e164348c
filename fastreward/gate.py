"""A gate that calls pass through, many at once, and that closes when the last of them is out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets calls pass until someone closes it, waits for those inside, and lets no new ones in meanwhile.

    Example:
        >>> gate = Gate()
        >>> with gate.passing():
        ...     pass  # many threads at once
        >>> with gate.closed():
        ...     pass  # nobody else is inside
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be inside; wait while it is closed. Who is inside must neither pass nor close it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Be alone: new calls wait from now on, and this one until those inside are out."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
            try:
                self._changed.wait_for(lambda: not self._inside)
            except BaseException:  # interrupted while it waited: those behind must not wait for ever
                self._open()
                raise
        try:
            yield
        finally:
            with self._changed:
                self._open()

    def _open(self) -> None:
        self._is_closed = False
        self._changed.notify_all()
