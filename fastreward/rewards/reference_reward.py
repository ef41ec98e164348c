"""What rewards that compare a completion with a reference text have in common: all but how they compare."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from fastreward.errors import InputError
from fastreward.rewards.base import NoText, RewardCounts, TextReward, as_list, reference_texts
from fastreward.rewards.completion import Extract, describe
from fastreward.scorer import DEFAULT_ENCODER, Scorer

__all__ = ["NoText", "ReferenceReward", "RewardCounts", "as_list", "reference_texts"]


class ReferenceReward(TextReward):
    """A reward that scores each completion against a reference text with an encoder; a subclass says how.

    See `base.TextReward` for the form of the call. It pickles to its configuration: the counts and a scorer
    that it built itself stay behind, and the process that uses the copy builds its own.

    Args:
        scorer: The scorer to use, best shared by all rewards of a run; or the name or folder of an encoder,
            from which one is built when it is first needed; or ``None`` for the default encoder.
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        extract, strip_thinking, no_text, name: As in `base.TextReward`.

    Raises:
        InputError: An argument is not one of the above.
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = TextReward._OF_THIS_PROCESS | {"_scorer"}

    # Whether it asks the scorer for vectors, which rewards that share one keep for each other.
    _READS_VECTORS: ClassVar[bool] = True

    _scorer: Scorer | None

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
        self._source = DEFAULT_ENCODER if scorer is None else scorer
        super().__init__(
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text=no_text,
            name=name,
        )

    @property
    def scorer(self) -> Scorer:
        """The scorer in use, built at the first need if only an encoder's name was given."""
        with self._lock:
            if self._scorer is None:
                assert not isinstance(self._source, Scorer)  # which `_start` has taken
                self._scorer = Scorer(self._source)
                self._join(self._scorer)
            return self._scorer

    @abstractmethod
    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        """Score texts, one at least, each against its references, of which there is at least one."""

    def _arguments(self) -> list[str]:
        return [repr(self._source), *super()._arguments()]

    def _start(self) -> None:
        super()._start()
        self._scorer = None
        if isinstance(self._source, Scorer):
            self._scorer = self._source
            self._join(self._scorer)

    def _join(self, scorer: Scorer) -> None:
        """Tell a scorer of this user: rewards that share it have each text encoded once a step."""
        if self._READS_VECTORS:
            scorer.attach(self)
