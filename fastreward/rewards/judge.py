"""JudgeReward: what a judge of one's own says of each completion, as a trainer's reward function."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from fastreward.caller import warn_caller
from fastreward.errors import InputError
from fastreward.rewards.base import NoText, RewardCounts, TextReward, reference_texts
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.desk import Case, Desk

Judge = Callable[..., Any]


@dataclass(frozen=True)
class JudgeCounts(RewardCounts):
    """`RewardCounts`, and how many of the scored the judge gave no number for.

    Attributes:
        samples: Completions handed over.
        scored: Those that the judge was asked about, of which ``undecided`` and ``failed`` are a part.
        missing_reference: Those without a reference; their reward is ``None``.
        no_text: Those with a reference from which there was nothing to extract.
        undecided: Those of the scored for which the judge returned ``None``.
        failed: Those of the scored for which it raised, took too long or returned no finite number, each time
            that it was asked.
    """

    undecided: int = 0
    failed: int = 0


class JudgeReward(TextReward):
    """Reward each completion by what a judge says of it: a language model, a web service, any function.

    The judge is called for each sample with the completion's text, and by keyword with those columns whose
    names it asks for: ``judge(text, *, prompt, explanation)`` gets the sample's entry of the columns
    ``prompts`` (or ``prompt``) and ``explanation``, as they are; ``reference`` is the column that the option
    of this name names. One that takes ``**columns`` gets every column with an entry per sample; one whose
    signature cannot be read gets the text alone. It returns a number, or anything that ``float()`` takes, or
    ``None`` where it will not decide. It may be a coroutine function.

    What fails gives ``None``, so that the trainer leaves the sample out; it is counted, and the first failure
    of each kind is told as a warning with its reason. A failure is an exception, a time-out, or a value that
    is no finite number; the judge is then asked again, ``retries`` times at most.

    Concurrency: a plain function runs in threads, a coroutine function as tasks of an event loop in a thread
    of its own (so that it may be called from within a running loop; what it shares with another loop, such as
    a client session, it must make there). A run holds one of ``max_concurrency`` places until it really ends,
    time-out or not, over all calls of this object: a judge that hangs is never started more often than that.
    It is left behind in a daemonic thread, which does not keep the process from ending. When all places are
    lost to runs that have timed out, a call waits another ``timeout_s`` for one and then gives up on the
    samples that are left. A call so ends, whatever the judge does.

    A process that was forked begins with all its places free, whatever its parent's judge was doing.

    It pickles to its configuration and the judge, which must be importable by name, as always with pickle.

    Args:
        judge: The judge.
        reference: Name of the column with the references, if a sample without one is not to be judged.
        timeout_s: Seconds that the judge has for one sample each time, waiting for a place not included.
        retries: How often it is asked again after a failure.
        backoff_s: Seconds before it is asked again; each further time takes twice as long.
        max_concurrency: How many runs of the judge there are at once.
        extract: The part of the completion to judge; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, so that
            it is punished, or ``"none"`` for ``None``, so that the trainer leaves it out.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above, or, in a call, a column that the judge asks for is
            absent or of another length.

    Example:
        >>> def brevity(text, *, limit):
        ...     return min(1.0, limit / len(text))
        >>> JudgeReward(brevity)(completions=["Four", "Eight, no"], limit=[4, 4])
        [1.0, 0.4444444444444444]
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = TextReward._OF_THIS_PROCESS | {"_desks", "_told"}
    _LOGGED: ClassVar[tuple[str, ...]] = (*TextReward._LOGGED, "undecided", "failed")
    _NO_COUNTS: ClassVar[RewardCounts] = JudgeCounts()
    _NEEDS_REFERENCE: ClassVar[bool] = False

    _desks: dict[int, Desk]
    _told: set[str]

    def __init__(
        self,
        judge: Judge,
        *,
        reference: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 0.5,
        max_concurrency: int = 8,
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "judge_reward",
    ) -> None:
        if not callable(judge):
            raise InputError("a function as judge", describe(judge), "Pass judge(text, **columns) -> float.")
        self._judge_function = judge
        self._timeout_s = _seconds("timeout_s", timeout_s, above=0.0)
        self._backoff_s = _seconds("backoff_s", backoff_s, above=-1.0)
        self._retries = _count("retries", retries, 0)
        self._max_concurrency = _count("max_concurrency", max_concurrency, 1)
        self._first, self._asks_for, self._asks_for_all = _keywords(judge)
        super().__init__(
            reference=reference, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def _start(self) -> None:
        super()._start()
        self._desks = {}
        self._told = set()

    @property
    def _desk(self) -> Desk:
        """The desk of this process: one that was forked has none of the threads that sit at its parent's."""
        process = os.getpid()
        if process not in self._desks:  # two made at once cost nothing: the second is dropped unused
            desk = Desk(
                self._judge_function,
                timeout_s=self._timeout_s,
                retries=self._retries,
                backoff_s=self._backoff_s,
                max_concurrency=self._max_concurrency,
            )
            self._desks.setdefault(process, desk)
        return self._desks[process]

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[Any]:
        """For each sample the keywords for the judge, boxed since there may be none."""
        entries = self._read_keywords(columns, count)
        rows = [({key: column[i] for key, column in entries.items()},) for i in range(count)]
        if self._reference is None:
            return rows
        references = self._read_column(self._reference, columns, count)
        given = [reference_texts(entry, f"{self._reference}[{i}]") for i, entry in enumerate(references)]
        return [row if texts else None for row, texts in zip(rows, given, strict=True)]

    def _read_keywords(self, columns: Mapping[str, object], count: int) -> dict[str, list[object]]:
        entries = {}
        for key, needed in self._asks_for.items():
            column = self._reference if key == "reference" and self._reference else key
            if column == "prompt" and "prompt" not in columns:
                column = "prompts"  # as trainers call it
            if needed or column in columns:
                entries[key] = self._read_column(column, columns, count)
        if self._asks_for_all:
            per_sample = {
                key: list(column)
                for key, column in columns.items()
                if _has_entries(column) and len(column) == count and key != self._first
            }
            entries = per_sample | entries
        return entries

    def _judge(self, texts: list[str], references: list[Any]) -> tuple[Sequence[float | None], RewardCounts]:
        cases = [Case(text, keywords) for text, (keywords,) in zip(texts, references, strict=True)]
        self._desk.hear(cases)
        failures = [case.failure for case in cases if case.failure is not None]
        undecided = sum(case.failure is None and case.verdict is None for case in cases)
        self._tell(failures)
        counts = JudgeCounts(scored=len(cases), undecided=undecided, failed=len(failures))
        return [case.verdict for case in cases], counts

    def _score(self, texts: list[str], references: list[Any]) -> Sequence[float | None]:
        return self._judge(texts, references)[0]

    def _tell(self, failures: list[str]) -> None:
        """Warn of the first failure of each kind."""
        for reason in failures:
            kind = reason.partition(":")[0]
            with self._lock:
                known = kind in self._told
                self._told.add(kind)
            if not known:
                warn_caller(
                    f"{self.__name__}: the judge failed ({reason}), and the sample's reward is None. This is "
                    f"said once for {kind}; `counts.failed` goes on counting.",
                    RuntimeWarning,
                )

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        return {
            "reference": shared.pop("reference", None),
            "timeout_s": self._timeout_s,
            "retries": self._retries,
            "backoff_s": self._backoff_s,
            "max_concurrency": self._max_concurrency,
        } | shared

    def _arguments(self) -> list[str]:
        return [repr(self._judge_function), *super()._arguments()]


def _keywords(judge: Judge) -> tuple[str, dict[str, bool], bool]:
    """What a judge calls the text, what else it asks for and whether it needs that, and if it takes all."""
    try:
        parameters = list(inspect.signature(judge).parameters.values())
    except (TypeError, ValueError):  # a built-in may have none that can be read
        return "", {}, False
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise InputError(
            "a judge whose first argument is the completion's text",
            describe(judge),
            "Define it as judge(text, *, reference).",
        )
    by_keyword = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    asks_for = {p.name: p.default is p.empty for p in by_keyword}
    return parameters[0].name, asks_for, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _has_entries(column: object) -> TypeGuard[Collection[object]]:
    return isinstance(column, Collection) and not isinstance(column, str | bytes | Mapping)


def _seconds(argument: str, value: object, above: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        least = "more than 0" if above == 0 else "0 or more"
        raise InputError(f"{least} seconds as {argument}", describe(value), f"Pass {argument}=1.0.")
    return max(0.0, float(value))


def _count(argument: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"an integer of {least} or more as {argument}", describe(value), f"Pass {least}.")
    return value
