"""A progress bar that appears only when there is something to wait for."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S: Final = 3.0
"""Seconds without a bar: what is done by then needs none."""


class ScoringProgress:
    """Shows how much is done on standard error.

    Args:
        total: The work there is, in any unit.
        enabled: True from the start, False never, None after `PATIENCE_S` if standard error is a terminal.
    """

    def __init__(self, total: int, enabled: bool | None) -> None:
        self._total = total
        self._done = 0
        self._enabled = enabled
        self._begin = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ScoringProgress:
        self.advance(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: int) -> None:
        """Count work that is done, and show the bar when it is time."""
        self._done += work
        if self._bar is None and self._due():
            columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
            )
            self._bar.add_task("scoring", total=self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def _due(self) -> bool:
        if self._enabled is not None:
            return self._enabled
        return time.monotonic() - self._begin > PATIENCE_S and sys.stderr.isatty()
