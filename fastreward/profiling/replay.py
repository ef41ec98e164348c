"""What logged calls of rewards would cost with another reward: the same texts, scored again and timed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastreward.errors import InputError
from fastreward.profiling.report import quantile
from fastreward.profiling.wording import counted, time_text

if TYPE_CHECKING:
    from rich.table import Table

WARM_UP: Final = ("A text that is scored before the clock runs.", "Its reference.")
"""What is scored first: it builds the encoder, and its words are in no logged text but by chance."""


@dataclass(frozen=True)
class ReplayedReward:
    """The calls of one reward, as they were and as they are with the replaying one. Times are seconds.

    Attributes:
        name: The reward that was logged.
        calls: Calls that were replayed.
        texts: Texts in them.
        recorded_s: What they took then, summed.
        replayed_s: What they took now, summed.
        recorded_median_s: Of a call.
        replayed_median_s: Of a call.
        recorded_p90_s: Nine of ten calls took less.
        replayed_p90_s: Nine of ten calls took less.
        none: Texts that the replaying reward gave no score.
        skipped: Calls that could not be replayed, for want of references.
    """

    name: str
    calls: int
    texts: int
    recorded_s: float
    replayed_s: float
    recorded_median_s: float | None
    replayed_median_s: float | None
    recorded_p90_s: float | None
    replayed_p90_s: float | None
    none: int
    skipped: int

    @property
    def speedup(self) -> float | None:
        """How many times as fast the replay was; ``None`` where nothing was replayed."""
        return self.recorded_s / self.replayed_s if self.replayed_s else None


@dataclass(frozen=True)
class ReplayResult:
    """What `replay` found.

    Attributes:
        rewards: Those that were logged, the costliest first.
        start_s: Seconds to build the replaying reward's encoder and score a first pair: once a run.
        broken_lines: Lines that could not be read, as where a process was killed while it wrote.
        left_out: Calls beyond the bound that was set.
    """

    rewards: tuple[ReplayedReward, ...]
    start_s: float
    broken_lines: int
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """All of it, of what `json.dumps` takes."""
        return asdict(self)

    def as_table(self) -> Table:
        """A table for a terminal: a call as it was, and as it is replayed."""
        from rich.table import Table

        table = Table(
            title="The same texts, replayed", caption="\n".join(self.notes()), caption_justify="left"
        )
        for heading in REPLAY_HEADINGS:
            table.add_column(heading, justify="left" if heading == "reward" else "right")
        for reward in self.rewards:
            table.add_row(*replay_cells(reward))
        return table

    def sentences(self) -> list[str]:
        """What it means, reward by reward, in plain words."""
        return [_sentence(reward) for reward in self.rewards]

    def notes(self) -> list[str]:
        """How it was measured, and what is missing."""
        notes = [
            "Replayed one call after the other on this machine, in the order of the log, after "
            f"{time_text(self.start_s)} to load the encoder; what was scored before may be known, as in runs."
        ]
        if self.left_out:
            notes.append(f"{counted(self.left_out, 'call')} left out, as was asked for.")
        if self.broken_lines:
            notes.append(f"{counted(self.broken_lines, 'line')} could not be read.")
        return notes


REPLAY_HEADINGS: Final = (
    "reward",
    "calls",
    "texts",
    "median then",
    "now",
    "p90 then",
    "now",
    "times as fast",
)


def replay_cells(reward: ReplayedReward) -> list[str]:
    """The cells of a reward's row, under `REPLAY_HEADINGS`."""
    speedup = reward.speedup
    return [
        reward.name,
        f"{reward.calls:,}",
        f"{reward.texts:,}",
        time_text(reward.recorded_median_s),
        time_text(reward.replayed_median_s),
        time_text(reward.recorded_p90_s),
        time_text(reward.replayed_p90_s),
        "not replayable: no references" if speedup is None else f"{speedup:.1f}",
    ]


def replay(
    file: str | PathLike[str],
    reward: Callable[..., Sequence[float | None]],
    *,
    reference: str = "reference",
    most_calls: int | None = None,
) -> ReplayResult:
    """Score the logged texts of a run again and time each call.

    The file has a JSON object for each call of a reward: ``reward`` (its name), ``step``, ``rank``,
    ``seconds`` (what the call took), ``completions`` (strings or conversations), and ``references`` (for each
    completion a string, a list of strings or ``null``; or ``null`` for all, and then there is nothing to
    compare with and the call is not replayed).

    Calls are replayed one by one, in the order of the file. One that several rewards were given alike is
    replayed for each of them, and what is known from the first is then known, as in a run with both.

    Args:
        file: The log.
        reward: What scores them now, such as a `SemanticReward`.
        reference: The column that it reads the references from.
        most_calls: Calls of each reward that are replayed, the first ones; ``None`` for all.

    Returns:
        Seconds then and now, by reward.

    Raises:
        InputError: If the file is not there or no line of it is such a call, or an argument is not one of
            the above.

    Example:
        >>> import tempfile
        >>> call = {"reward": "judge", "step": 1, "rank": 0, "seconds": 0.8}
        >>> call |= {"completions": ["The heart pumps blood."], "references": ["Blood is pumped."]}
        >>> def brief(completions, reference):
        ...     return [1.0 for _ in completions]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Path(folder) / "calls.jsonl"
        ...     _ = log.write_text(json.dumps(call))
        ...     result = replay(log, brief)
        >>> judge = result.rewards[0]
        >>> judge.calls, judge.texts, judge.recorded_s, judge.replayed_s < 0.8
        (1, 1, 0.8, True)
    """
    if not callable(reward):
        raise InputError("a reward that can be called", repr(reward), "Pass SemanticReward().")
    if most_calls is not None and (
        not isinstance(most_calls, int) or isinstance(most_calls, bool) or most_calls < 1
    ):
        raise InputError("1 or more as most_calls, or None", repr(most_calls), "Pass a whole number.")
    path = Path(file)
    if not path.is_file():
        raise InputError("a file of logged calls", str(path), "Profile a run with --replay, which logs them.")
    start_s = _timed(reward, {"completions": [WARM_UP[0]], reference: [WARM_UP[1]]})[0]
    tallies: dict[str, _Tally] = {}
    broken = 0
    for call in _calls(path):
        if call is None:
            broken += 1
            continue
        tally = tallies.setdefault(call.reward, _Tally())
        if call.references is None:
            tally.skipped += 1
        elif most_calls is not None and len(tally.replayed_s) >= most_calls:
            tally.left_out += 1
        else:
            columns = {"completions": list(call.completions), reference: list(call.references)}
            seconds, scores = _timed(reward, columns)
            tally.recorded_s.append(call.seconds)
            tally.replayed_s.append(seconds)
            tally.texts += len(call.completions)
            tally.none += sum(score is None for score in scores)
    if not tallies:
        raise InputError(
            "one JSON object a line with reward, seconds, completions and references",
            f"{counted(broken, 'line')} in {path} that cannot be read"
            if broken
            else f"{path}, which is empty",
            "Profile a run with --replay, which logs them.",
        )
    rewards = sorted((_row(*item) for item in tallies.items()), key=lambda row: -row.recorded_s)
    return ReplayResult(tuple(rewards), start_s, broken, sum(tally.left_out for tally in tallies.values()))


@dataclass
class _Tally:
    recorded_s: list[float] = field(default_factory=list)
    replayed_s: list[float] = field(default_factory=list)
    texts: int = 0
    none: int = 0
    skipped: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class _Call:
    reward: str
    seconds: float
    completions: list[Any]
    references: list[Any] | None


def _calls(path: Path) -> Iterator[_Call | None]:
    """The calls of a log; ``None`` for a line that is none. Blank lines are skipped."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = None
                yield _call(entry)


def _call(entry: object) -> _Call | None:
    """A call as it was logged, if that is what it is."""
    if not isinstance(entry, Mapping):
        return None
    name, seconds = entry.get("reward"), entry.get("seconds")
    completions, references = entry.get("completions"), entry.get("references")
    if not isinstance(name, str) or not isinstance(completions, list):
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        return None
    if references is not None and not (isinstance(references, list) and len(references) == len(completions)):
        return None
    if references is not None and not any(references):
        references = None
    return _Call(name, float(seconds), completions, references)


def _timed(
    reward: Callable[..., Sequence[float | None]], columns: dict[str, list[Any]]
) -> tuple[float, Sequence[float | None]]:
    begin = time.perf_counter()
    scores = reward(**columns)
    return time.perf_counter() - begin, scores


def _row(name: str, tally: _Tally) -> ReplayedReward:
    return ReplayedReward(
        name,
        calls=len(tally.replayed_s),
        texts=tally.texts,
        recorded_s=sum(tally.recorded_s),
        replayed_s=sum(tally.replayed_s),
        recorded_median_s=quantile(tally.recorded_s, 0.5),
        replayed_median_s=quantile(tally.replayed_s, 0.5),
        recorded_p90_s=quantile(tally.recorded_s, 0.9),
        replayed_p90_s=quantile(tally.replayed_s, 0.9),
        none=tally.none,
        skipped=tally.skipped,
    )


def _sentence(reward: ReplayedReward) -> str:
    speedup = reward.speedup
    if speedup is None:
        return f'"{reward.name}" has no references to compare with: not replayable.'
    then, now = time_text(reward.recorded_median_s), time_text(reward.replayed_median_s)
    verdict = (
        f"{speedup:.1f} times as fast in all"
        if speedup > 1.05
        else f"{1 / speedup:.1f} times as slow in all"
        if speedup < 0.95
        else "the same in all"
    )
    skipped = f"; {counted(reward.skipped, 'call')} had no references" if reward.skipped else ""
    return f'"{reward.name}" took {then} a call; the same texts take {now} here: {verdict}{skipped}.'
