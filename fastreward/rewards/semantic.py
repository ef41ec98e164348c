"""SemanticReward: how near each completion's meaning is to its reference, as a trainer's reward function."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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


class SemanticReward:
    """Reward each completion by its semantic similarity to a reference text.

    The reward is the cosine in [-1, 1] between the encoder's embedding of the completion (or of the part of
    it that ``extract`` names) and that of the reference; with several references, the best of them. The
    method is that of "Shaping Explanations: Semantic Reward Modeling with Encoder-Only Transformers for GRPO"
    (arXiv 2509.13081).

    An instance is a plain callable in the form that TRL's trainers and those modelled on them take: it reads
    the columns that it needs from the keywords, ignores the rest and returns Python floats. It may be called
    from many threads at once. It pickles to its configuration: the counts and a scorer that it built itself
    stay behind, and the process that uses the copy builds its own.

    Args:
        scorer: The scorer to use, best shared by all rewards of a run; or the name or folder of an encoder,
            from which one is built when it is first needed; or ``None`` for the default encoder.
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        extract: The part of the completion to score: ``None`` for all of it, a tag's name such as
            ``"explanation"``, a compiled pattern or a function; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first. Left in, it drowns what it leads to.
        no_text: What a completion is worth from which nothing can be extracted (it is blank, lacks the tag or
            never closes its thinking): ``"zero"`` for 0.0, so that it is punished, or ``"none"`` for
            ``None``, so that the trainer leaves it out.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = SemanticReward(reference="explanation", extract="explanation")
        >>> rewards = reward(
        ...     completions=[
        ...         "<explanation>The heart pumps blood.</explanation>",
        ...         "<think>Is it the heart or",
        ...         "<explanation>The heart pumps blood.</explanation>",
        ...     ],
        ...     explanation=["The heart pumps blood.", "The heart pumps blood.", None],
        ... )
        >>> [value if value is None else round(value, 2) for value in rewards]
        [1.0, 0.0, None]
        >>> reward.counts
        RewardCounts(samples=3, scored=1, missing_reference=1, no_text=1)
    """

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
        name: str = "semantic_reward",
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
            N rewards, each a float in [-1, 1], or ``None`` for a sample that cannot be judged.

        Raises:
            InputError: The reference column is absent or of another length, or an entry, which the message
                names by its index, is neither text nor missing.
        """
        entries = _as_list("completions", completions)
        references = self._read_references(columns, len(entries))
        texts = [self._read_completion(index, entry) for index, entry in enumerate(entries)]

        scorable = {i: text for i, text in enumerate(texts) if text is not None and references[i]}
        worth = 0.0 if self._no_text == "zero" else None
        rewards = [worth if reference else None for reference in references]
        if scorable:
            scores = self.scorer.score(list(scorable.values()), [references[i] for i in scorable])
            for i, score in zip(scorable, scores.tolist(), strict=True):
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
            >>> reward = SemanticReward()
            >>> asyncio.run(reward.ascore(completions=["The heart pumps blood."], reference=[None]))
            [None]
        """
        return await asyncio.to_thread(self, completions, **columns)

    def __repr__(self) -> str:
        return (
            f"SemanticReward({self._source!r}, reference={self._reference!r}, "
            f"extract={self._extractor.extract!r}, strip_thinking={self._extractor.strip_thinking!r}, "
            f"no_text={self._no_text!r}, name={self.__name__!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in {"_lock", "_scorer", "_counts"}}

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
                "Name the data set's own column with SemanticReward(reference=…).",
            )
        entries = _as_list(name, columns[name])
        if len(entries) != count:
            raise InputError(
                "one reference per completion",
                f"{count} completions and {len(entries)} references in {name!r}",
                "Repeat each reference once for every completion of its prompt.",
            )
        return [_reference_texts(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]

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


def _as_list(name: str, column: object) -> list[object]:
    """A column's entries; lists, arrays and data-set columns alike."""
    if isinstance(column, Iterable) and not isinstance(column, str | bytes | Mapping):
        return list(column)
    raise InputError(f"a list as {name!r}", describe(column), "Pass one entry per sample.")


def _reference_texts(reference: object, where: str) -> list[str]:
    """The texts of one sample's reference, those that are missing left out."""
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
