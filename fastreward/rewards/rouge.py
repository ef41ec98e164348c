"""RougeLReward: how many words a completion shares with its reference, in order."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, get_args

from fastreward.errors import BackendUnavailableError, InputError
from fastreward.rewards.base import NoText, TextReward
from fastreward.rewards.completion import Extract, describe

Part = Literal["f1", "precision", "recall"]

_FIELDS: Final = {"f1": "fmeasure", "precision": "precision", "recall": "recall"}
_ROUGE_WORD: Final = re.compile("[a-z0-9]+")


class RougeLReward(TextReward):
    """Reward each completion by ROUGE-L: the longest sequence of words that a reference has as well.

    Precision is that sequence's share of the completion's words, recall of the reference's, F1 their harmonic
    mean, all in [0, 1] and as the package rouge-score computes them. With several references the best counts.

    It is the brittle baseline, here to be compared with and not to be trained on: a paraphrase in other words
    scores low and a negation high. The words are rouge-score's own, runs of the letters a to z and of digits:
    an accented letter splits a word ("perché" is "perch"), and a text in another script has no word and
    scores 0.0, unless ``tokenize`` brings words of its own, such as `words.words`.

    The time is the product of both lengths, in plain Python, so that ``max_tokens`` bounds it: what stands
    behind the first ``max_tokens`` words of a text is not compared.

    Args:
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        score: Which of the three is the reward: ``"f1"``, ``"precision"`` or ``"recall"``.
        stemmer: Whether words are cut to their stems, English ones as rouge-score does it.
        max_tokens: Words of a text that are compared at most.
        tokenize: A function from a text to its words instead of rouge-score's own.
        extract: The part of the completion to score; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0 or
            ``"none"`` for ``None``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.
        BackendUnavailableError: The package rouge-score is not installed.

    Example:
        >>> reward = RougeLReward()
        >>> rewards = reward(
        ...     completions=[
        ...         "The heart pumps blood.",
        ...         "The heart does not pump blood.",
        ...         "It drives circulation.",
        ...     ],
        ...     reference=["The heart pumps blood."] * 3,
        ... )
        >>> [round(value, 2) for value in rewards]
        [1.0, 0.6, 0.0]

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries (2004).
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = TextReward._OF_THIS_PROCESS | {"_rouge"}

    _rouge: Any

    def __init__(
        self,
        reference: str = "reference",
        *,
        score: Part = "f1",
        stemmer: bool = False,
        max_tokens: int = 512,
        tokenize: Callable[[str], list[str]] | None = None,
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "rouge_l_reward",
    ) -> None:
        if score not in get_args(Part):
            raise InputError("'f1', 'precision' or 'recall' as score", describe(score), "Correct the name.")
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise InputError("a positive integer as max_tokens", describe(max_tokens), "Pass 512.")
        if tokenize is not None and (not callable(tokenize) or stemmer):
            raise InputError(
                "a function as tokenize, and then no stemmer",
                f"{describe(tokenize)} with stemmer={stemmer}",
                "Let the function return stems.",
            )
        if importlib.util.find_spec("rouge_score") is None:
            raise BackendUnavailableError(
                "the package rouge-score", "none installed", 'Install it: pip install "fastreward[trl]".'
            )
        self._part: Part = score
        self._stemmer, self._max_tokens, self._tokenize = stemmer, max_tokens, tokenize
        super().__init__(
            reference=reference, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def _start(self) -> None:
        super()._start()
        self._rouge = None

    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        if self._rouge is None:  # two threads may build one each, and get the same
            self._rouge = self._rouge_scorer()
        return [
            max(self._compare(reference, text) for reference in several)
            for text, several in zip(texts, references, strict=True)
        ]

    def _compare(self, reference: str, text: str) -> float:
        if self._tokenize is None:
            reference, text = self._first_words(reference), self._first_words(text)
        result = self._rouge.score(reference, text)["rougeL"]
        return float(getattr(result, _FIELDS[self._part]))

    def _first_words(self, text: str) -> str:
        """The beginning that is compared. It is cut before rouge-score sees it, whose stemmer is slow."""
        found = itertools.islice(_ROUGE_WORD.finditer(text.lower()), self._max_tokens)
        return " ".join(match[0] for match in found)

    def _rouge_scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        if self._tokenize is None:
            return RougeScorer(["rougeL"], use_stemmer=self._stemmer)
        return RougeScorer(["rougeL"], tokenizer=_FirstWords(self._tokenize, self._max_tokens))

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        return {
            "reference": shared.pop("reference"),
            "score": self._part,
            "stemmer": self._stemmer,
            "max_tokens": self._max_tokens,
            "tokenize": self._tokenize,
        } | shared


class _FirstWords:
    """A function from a text to its words, in the form that rouge-score takes."""

    def __init__(self, tokenize: Callable[[str], list[str]], max_tokens: int) -> None:
        self._tokenize, self._max_tokens = tokenize, max_tokens

    def tokenize(self, text: str) -> list[str]:
        return list(self._tokenize(text))[: self._max_tokens]
