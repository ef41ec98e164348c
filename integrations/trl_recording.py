"""Records the trainers of a process of a profiled command, and its rewards' texts where they are wanted."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fastreward.integrations.trl_calls import RewardCall
from fastreward.integrations.trl_profiling import hooked
from fastreward.profiling import Timeline
from fastreward.rewards.completion import completion_text

TEXTS: Final = "texts.json"
"""Its presence in the folder asks for texts; it names the column of references, or ``null``."""

CALLS: Final = ".calls.jsonl"
"""How files with texts end."""

WRITING_S: Final = 2.0
"""How long a process that is terminated may write."""

REFERENCES: Final = (
    "reference",
    "references",
    "explanation",
    "ground_truth",
    "solution",
    "target",
    "answer",
    "label",
)
"""Columns in which references mostly are, the likeliest first."""


def record(trainer: Any, folder: str) -> Callable[[], None]:
    """Record a trainer that begins to train.

    All trainers of a process share a timeline.

    Args:
        trainer: The trainer.
        folder: Where recordings go.

    Returns:
        What is to be called when it has trained, or failed to.
    """
    hooks = hooked(trainer, _timeline(folder), log=False, on_call=_texts(folder, trainer))
    return hooks.end_step


@functools.cache
def _timeline(folder: str) -> Timeline:
    timeline = Timeline(folder=folder)
    _write_when_terminated(timeline)
    return timeline


def _write_when_terminated(timeline: Timeline) -> None:
    """Have everything written on SIGTERM, which ends a process at once, if nobody else looks after it."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    pid = os.getpid()

    def write_and_end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # launchers may send it again while this writes
        if os.getpid() == pid:  # not in a fork of it
            # In a thread: this one may hold the locks.
            writer = threading.Thread(target=timeline.close, daemon=True)
            writer.start()
            writer.join(WRITING_S)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, write_and_end)


# --------------------------------------------------------------------------- texts


def _texts(folder: str, trainer: Any) -> Callable[[RewardCall], None] | None:
    try:
        column = json.loads((Path(folder) / TEXTS).read_text(encoding="utf-8"))["reference"]
    except FileNotFoundError:
        return None
    return TextLog(Path(folder), column, lambda: trainer.state.global_step + 1)


class TextLog:
    """Writes the texts of reward calls: an object a line, as `profiling.replay.replay` reads them.

    Args:
        folder: Where.
        column: That of the references; ``None`` looks for it.
        step: Says which step it is.
    """

    def __init__(self, folder: Path, column: str | None, step: Callable[[], int]) -> None:
        rank = os.environ.get("RANK", "0")
        self.rank = int(rank) if rank.isdecimal() else 0
        self._path = folder / f"rank{self.rank}-pid{os.getpid()}{CALLS}"
        self._column = column
        self._step = step
        self._lock = threading.Lock()  # awaited rewards end in another thread

    def __call__(self, call: RewardCall) -> None:
        """Write a call."""
        completions = [completion_text(entry) for entry in call.arguments["completions"]]
        line = json.dumps(
            {
                "reward": call.reward,
                "step": self._step(),
                "rank": self.rank,
                "seconds": call.seconds,
                "completions": completions,
                "references": references(call.function, call.arguments, len(completions), self._column),
            }
        )
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def references(
    reward: object, columns: Mapping[str, Any], count: int, column: str | None = None
) -> list[str | list[str] | None] | None:
    """Find the references among the columns of N texts.

    Args:
        reward: The reward function: one of this library says which column it is.
        columns: The keywords of a call.
        count: N.
        column: The column, if it is known.

    Returns:
        A reference for each text, several, or ``None``; or ``None`` if there is no such column.

    Example:
        >>> references(len, {"completions": ["a"], "prompts": ["?"], "answer": ["b"]}, 1)
        ['b']
    """
    own = getattr(reward, "_reference", None)
    names = [column] if column is not None else [own] if isinstance(own, str) else REFERENCES
    for name in names:
        values = columns.get(name)
        if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count:
            found = [_reference(value) for value in values]
            if any(found):
                return found
    return None


def _reference(value: object) -> str | list[str] | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return list(value)
    return None
