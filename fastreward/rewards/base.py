"""What every reward is, and what those that judge one completion's text at a time have in common."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, runtime_checkable

import numpy as np

from fastreward.errors import InputError
from fastreward.rewards.completion import Completion, Extract, Extractor, completion_text, describe

NoText = Literal["zero", "none"]

ColumnKind = Literal["answer", "options", "prompt", "reference"]
"""What a column holds by which completions are judged: `TextReward.columns_read`."""


@runtime_checkable
class Reward(Protocol):
    """Anything that a trainer can call for rewards, a plain function included.

    It has a ``__name__``, takes N completions and the batch's other columns by keyword, and returns N
    rewards, each a float, or ``None`` for a sample that cannot be judged. A trainer also passes keywords that
    are no columns, so a function of one's own should end in ``**columns``.

    Example:
        >>> def brief(completions, **columns):
        ...     return [float(len(text) < 80) for text in completions]
        >>> isinstance(brief, Reward)
        True
    """

    __name__: str

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch of N completions."""


@dataclass(frozen=True)
class RewardCounts:
    """How many samples a reward has seen, and what became of them.

    Every sample is exactly one of the other three.

    Attributes:
        samples: Completions handed over.
        scored: Those whose text was judged.
        missing_reference: Those without a reference; their reward is ``None``.
        no_text: Those with a reference from which there was nothing to extract.
    """

    samples: int = 0
    scored: int = 0
    missing_reference: int = 0
    no_text: int = 0

    def __add__(self, other: Self) -> Self:
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return type(self)(**sums)


class TextReward(ABC):
    """A reward that judges the text of each completion by itself; a subclass says how.

    An instance is a plain callable in the form that TRL's trainers and those modelled on them take: it reads
    the columns that it needs from the keywords, ignores the rest and returns Python floats. It may be called
    from many threads at once. It pickles to its configuration; the counts stay behind.

    Args:
        reference: Name of the column by which completions are judged, or ``None`` if there is none.
        extract: The part of the completion to judge; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, so that
            it is punished, or ``"none"`` for ``None``, so that the trainer leaves it out.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Attributes:
        judges_alone: Whether what a completion gets is the same whoever else is in the call. Only what judges
            alone is scored before the others are written; a subclass that compares them says False.
    """

    judges_alone: ClassVar[bool] = True

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = frozenset({"_lock", "_counts"})
    _LOGGED: ClassVar[tuple[str, ...]] = ("no_text", "missing_reference")  # counts that are logged as shares
    _NO_COUNTS: ClassVar[RewardCounts] = RewardCounts()
    _NEEDS_REFERENCE: ClassVar[bool] = True

    _lock: threading.Lock
    _counts: RewardCounts

    def __init__(
        self,
        *,
        reference: str | None,
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str,
    ) -> None:
        if reference is not None or self._NEEDS_REFERENCE:
            check_column("reference", reference)
        if no_text not in get_args(NoText):
            raise InputError(
                "'zero' or 'none' as no_text", describe(no_text), "'zero' punishes, 'none' leaves out."
            )
        self.__name__ = name
        self._reference = reference
        self._extractor = Extractor(extract, strip_thinking)
        self._no_text: NoText = no_text
        self._start()

    @property
    def reference(self) -> str | None:
        """Name of the column by which completions are judged, or ``None`` if there is none."""
        return self._reference

    def columns_read(self) -> dict[str, ColumnKind]:
        """Name the columns that a call needs, and what each holds, so that data is checked before training.

        Example:
            >>> from fastreward.rewards import AnswerReward
            >>> AnswerReward("letter", options="choices").columns_read()
            {'letter': 'answer', 'choices': 'options'}
        """
        return {} if self._reference is None else {self._reference: "reference"}

    @property
    def counts(self) -> RewardCounts:
        """Totals over all calls on this object in this process."""
        with self._lock:
            return self._counts

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch.

        Args:
            completions: N completions, each a string or a conversation (a list of messages).
            **columns: What the trainer passes by keyword. Only the columns that the reward was told to read
                are needed, of N entries each. If there is a function ``log_metric(name, value)``, every call
                logs with it the shares of samples that could not be judged, and why: for a reward with
                references ``{name}/no_text_ratio`` and ``{name}/missing_reference_ratio``.

        Returns:
            N rewards, each a float, or ``None`` for a sample that cannot be judged.

        Raises:
            InputError: A needed column is absent or of another length, or an entry, which the message names
                by its index, is not what the column should hold.
        """
        entries = as_list("completions", completions)
        references = self._read_references(columns, len(entries))
        texts = [self._read_completion(index, entry) for index, entry in enumerate(entries)]

        scorable = {i: text for i, text in enumerate(texts) if text is not None and references[i]}
        worth = 0.0 if self._no_text == "zero" else None
        rewards = [worth if reference else None for reference in references]
        counts = self._NO_COUNTS
        if scorable:
            scores, counts = self._judge(list(scorable.values()), [references[i] for i in scorable])
            for i, score in zip(scorable, scores, strict=True):
                rewards[i] = score

        missing = sum(not reference for reference in references)
        skipped = {"missing_reference": missing, "no_text": len(texts) - len(scorable) - missing}
        counts += type(counts)(samples=len(texts), **skipped)
        with self._lock:
            self._counts += counts
        self._log(columns.get("log_metric"), counts)
        return rewards

    async def ascore(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch in a worker thread, so that the event loop stays free.

        Args:
            completions: As in a plain call.
            **columns: As in a plain call.

        Returns:
            The same as a plain call.

        Raises:
            InputError: As a plain call does.

        Example:
            >>> from fastreward.rewards import SemanticReward
            >>> reward = SemanticReward()
            >>> asyncio.run(reward.ascore(completions=["The heart pumps blood."], reference=[None]))
            [None]
        """
        return await asyncio.to_thread(self, completions, **columns)

    def _judge(self, texts: list[str], references: list[Any]) -> tuple[Sequence[float | None], RewardCounts]:
        """Score texts, one at least, each with what it is judged by, and count what became of them."""
        return self._score(texts, references), RewardCounts(scored=len(texts))

    @abstractmethod
    def _score(self, texts: list[str], references: list[Any]) -> Sequence[float | None]:
        """Score texts, one at least, each with what it is judged by."""

    def _options(self) -> dict[str, object]:
        """The arguments by keyword, for the repr."""
        reference = {} if self._reference is None else {"reference": self._reference}
        return {
            **reference,
            "extract": self._extractor.extract,
            "strip_thinking": self._extractor.strip_thinking,
            "no_text": self._no_text,
            "name": self.__name__,
        }

    def _arguments(self) -> list[str]:
        """What stands between the brackets of the repr."""
        return [f"{name}={value!r}" for name, value in self._options().items()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arguments())})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        """Set what belongs to this object in this process and is never copied."""
        self._lock = threading.Lock()
        self._counts = self._NO_COUNTS

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[Any]:
        """For each completion what it is judged by; false where that is missing."""
        if self._reference is None:
            return [True] * count
        entries = self._read_column(self._reference, columns, count)
        return [self._read_reference(entry, f"{self._reference}[{i}]") for i, entry in enumerate(entries)]

    def _read_column(self, name: str, columns: Mapping[str, object], count: int) -> list[object]:
        """The N entries of a column that is needed."""
        if name not in columns:
            raise InputError(
                f"a column {name!r}, which {self.__name__} reads",
                f"the columns {sorted(columns)}",
                f"Name the data set's own column when you make the {type(self).__name__}.",
            )
        entries = as_list(name, columns[name])
        if len(entries) != count:
            kind = "references" if name == self._reference else "entries"
            raise InputError(
                f"one entry of {name!r} per completion",
                f"{count} completions and {len(entries)} {kind} in {name!r}",
                "Repeat each prompt's entry once for every completion of it.",
            )
        return entries

    def _read_reference(self, entry: object, where: str) -> Any:
        """What one entry of the reference column holds; false where it is missing."""
        return reference_texts(entry, where)

    def _read_completion(self, index: int, completion: object) -> str | None:
        try:
            return self._extractor(self._prepare(completion_text(completion)))
        except InputError as error:
            received = f"{error.received} in completions[{index}]"
            raise InputError(error.expected, received, error.remedy) from error

    def _prepare(self, text: str) -> str:
        """What is made of a completion's text before anything is taken from it."""
        return text

    def _log(self, log_metric: object, counts: RewardCounts) -> None:
        """Log the same keys whatever came: trainers gather them across ranks."""
        if callable(log_metric):
            samples = max(counts.samples, 1)
            for name in self._LOGGED:
                log_metric(f"{self.__name__}/{name}_ratio", getattr(counts, name) / samples)


def check_column(argument: str, name: object) -> None:
    """Refuse what cannot name a column, above all a column itself.

    Raises:
        InputError: If it is no string.
    """
    if not isinstance(name, str):
        raise InputError(
            f"the name of a column as {argument}",
            describe(name),
            "Pass its entries in the call: reward(completions=…, **columns).",
        )


def as_list(name: str, column: object) -> list[object]:
    """Read a column's entries; lists, arrays and data-set columns alike.

    Raises:
        InputError: If it is a text, a mapping, or nothing to go through.

    Example:
        >>> as_list("reference", ("The heart.", None))
        ['The heart.', None]
    """
    if isinstance(column, Iterable) and not isinstance(column, str | bytes | Mapping):
        return list(column)
    raise InputError(f"a list as {name!r}", describe(column), "Pass one entry per sample.")


def reference_texts(reference: object, where: str) -> list[str]:
    """Read the texts of one sample's reference, those that are missing left out.

    Args:
        reference: A string, or several in a list, tuple or NumPy array; ``None``, NaN and blank strings are
            missing.
        where: What to call it in a message.

    Raises:
        InputError: If it is, or holds, anything else.

    Example:
        >>> reference_texts(["The heart.", " ", None], "reference[0]")
        ['The heart.']
    """
    texts = []
    for entry in several(reference):
        if isinstance(entry, str):
            if entry.strip():
                texts.append(entry)
        elif not is_missing(entry):
            raise InputError(
                "a string, a list of strings or None as reference",
                f"{describe(entry)} in {where}",
                "Convert the column to text.",
            )
    return texts


def several(entry: object) -> list[Any]:
    """Read one sample's entry of a column that may hold one thing or several.

    Args:
        entry: A list, tuple or NumPy array of things, as data sets give them, or one thing.

    Returns:
        The things, NumPy's own scalars as Python's.

    Example:
        >>> several(np.array(["The heart.", "A pump."])), several("The heart.")
        (['The heart.', 'A pump.'], ['The heart.'])
    """
    if isinstance(entry, np.ndarray):
        things = entry.tolist()
        return things if isinstance(things, list) else [things]
    return list(entry) if isinstance(entry, list | tuple) else [entry]


def is_missing(entry: object) -> bool:
    """Whether a column's entry says that there is none: ``None`` or NaN.

    Example:
        >>> is_missing(float("nan")), is_missing(0.0)
        (True, False)
    """
    return entry is None or (isinstance(entry, Real) and entry != entry)  # NumPy's NaN too
