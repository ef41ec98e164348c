"""What rewards that compare a completion with a reference text have in common: all but how they compare."""

from __future__ import annotations

import asyncio
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from fastreward.errors import InputError
from fastreward.rewards.completion import Completion, Extract, Extractor, completion_text, describe
from fastreward.scorer import DEFAULT_ENCODER, Scorer

NoText = Literal["zero", "none"]


@dataclass(frozen=True)
class RewardCounts:
    """How many samples a reward has seen, and what became of them.

    Every sample is exactly one of the other three.

    Attributes:
        samples: Completions handed over.
        scored: Those that the encoder scored.
        missing_reference: Those without a reference; their reward is ``None``.
        no_text: Those with a reference from which there was nothing to extract.
    """

    samples: int = 0
    scored: int = 0
    missing_reference: int = 0
    no_text: int = 0

    def __add__(self, other: RewardCounts) -> RewardCounts:
        return RewardCounts(
            samples=self.samples + other.samples,
            scored=self.scored + other.scored,
            missing_reference=self.missing_reference + other.missing_reference,
            no_text=self.no_text + other.no_text,
        )


class ReferenceReward(ABC):
    """A reward that scores each completion against a reference text; a subclass says how.

    An instance is a plain callable in the form that TRL's trainers and those modelled on them take: it reads
    the columns that it needs from the keywords, ignores the rest and returns Python floats. It may be called
    from many threads at once. It pickles to its configuration: the counts and a scorer that it built itself
    stay behind, and the process that uses the copy builds its own.

    Args:
        scorer: The scorer to use, best shared by all rewards of a run; or the name or folder of an encoder,
            from which one is built when it is first needed; or ``None`` for the default encoder.
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        extract: The part of the completion to score; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, so that
            it is punished, or ``"none"`` for ``None``, so that the trainer leaves it out.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = frozenset({"_lock", "_scorer", "_counts"})

    _lock: threading.Lock
    _scorer: Scorer | None
    _counts: RewardCounts

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str,
    ) -> None:
        if not isinstance(scorer, Scorer | str | Path | None):
            raise InputError(
                "a Scorer, an encoder's name or folder, or None as scorer",
                describe(scorer),
                "Build one with Scorer('sentence-transformers/all-MiniLM-L6-v2').",
            )
        if not isinstance(reference, str):
            raise InputError(
                "the name of a column as reference",
                describe(reference),
                "Pass the references themselves in the call: reward(completions=…, reference=…).",
            )
        if no_text not in get_args(NoText):
            raise InputError(
                "'zero' or 'none' as no_text", describe(no_text), "'zero' punishes, 'none' leaves out."
            )
        self.__name__ = name
        self._source = DEFAULT_ENCODER if scorer is None else scorer
        self._reference = reference
        self._extractor = Extractor(extract, strip_thinking)
        self._no_text: NoText = no_text
        self._start()

    @property
    def scorer(self) -> Scorer:
        """The scorer in use, built at the first need if only an encoder's name was given."""
        with self._lock:
            if self._scorer is None:
                self._scorer = self._source if isinstance(self._source, Scorer) else Scorer(self._source)
            return self._scorer

    @property
    def counts(self) -> RewardCounts:
        """Totals over all calls on this object in this process."""
        with self._lock:
            return self._counts

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch.

        Args:
            completions: N completions, each a string or a conversation (a list of messages).
            **columns: What the trainer passes by keyword. Only the reference column, of N entries, is needed.
                If there is a function ``log_metric(name, value)``, every call logs with it the shares of
                samples without text and without reference, as ``{name}/no_text_ratio`` and
                ``{name}/missing_reference_ratio``.

        Returns:
            N rewards, each a float, or ``None`` for a sample that cannot be judged.

        Raises:
            InputError: The reference column is absent or of another length, or an entry, which the message
                names by its index, is neither text nor missing.
        """
        entries = as_list("completions", completions)
        references = self._read_references(columns, len(entries))
        texts = [self._read_completion(index, entry) for index, entry in enumerate(entries)]

        scorable = {i: text for i, text in enumerate(texts) if text is not None and references[i]}
        worth = 0.0 if self._no_text == "zero" else None
        rewards = [worth if reference else None for reference in references]
        if scorable:
            scores = self._score(list(scorable.values()), [references[i] for i in scorable])
            for i, score in zip(scorable, scores, strict=True):
                rewards[i] = score

        missing = references.count([])
        counts = RewardCounts(len(texts), len(scorable), missing, len(texts) - len(scorable) - missing)
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

    @abstractmethod
    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        """Score texts, one at least, each against its references, of which there is at least one."""

    def _options(self) -> dict[str, object]:
        """The arguments after the scorer, for the repr."""
        return {
            "reference": self._reference,
            "extract": self._extractor.extract,
            "strip_thinking": self._extractor.strip_thinking,
            "no_text": self._no_text,
            "name": self.__name__,
        }

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({self._source!r}{options})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        """Set what belongs to this object in this process and is never copied."""
        self._lock = threading.Lock()
        self._scorer = None
        self._counts = RewardCounts()

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[list[str]]:
        """For each completion its references, ``[]`` where they are missing."""
        name = self._reference
        if name not in columns:
            raise InputError(
                f"a column {name!r} with the references",
                f"the columns {sorted(columns)}",
                f"Name the data set's own column with {type(self).__name__}(reference=…).",
            )
        entries = as_list(name, columns[name])
        if len(entries) != count:
            raise InputError(
                "one reference per completion",
                f"{count} completions and {len(entries)} references in {name!r}",
                "Repeat each reference once for every completion of its prompt.",
            )
        return [reference_texts(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]

    def _read_completion(self, index: int, completion: object) -> str | None:
        try:
            return self._extractor(completion_text(completion))
        except InputError as error:
            received = f"{error.received} in completions[{index}]"
            raise InputError(error.expected, received, error.remedy) from error

    def _log(self, log_metric: object, counts: RewardCounts) -> None:
        """Log the same two keys whatever came: trainers gather them across ranks."""
        if callable(log_metric):
            samples = max(counts.samples, 1)
            log_metric(f"{self.__name__}/no_text_ratio", counts.no_text / samples)
            log_metric(f"{self.__name__}/missing_reference_ratio", counts.missing_reference / samples)


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
        reference: A string or several; ``None``, NaN and blank strings are missing.
        where: What to call it in a message.

    Raises:
        InputError: If it is, or holds, anything else.

    Example:
        >>> reference_texts(["The heart.", " ", None], "reference[0]")
        ['The heart.']
    """
    entries = reference if isinstance(reference, list | tuple) else (reference,)
    texts = []
    for entry in entries:
        if isinstance(entry, str):
            if entry.strip():
                texts.append(entry)
        elif entry is not None and not (isinstance(entry, float) and math.isnan(entry)):
            raise InputError(
                "a string, a list of strings or None as reference",
                f"{describe(entry)} in {where}",
                "Convert the column to text.",
            )
    return texts
