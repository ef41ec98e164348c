"""LengthReward and RepetitionReward: the surface of a text, as a trainer's reward functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from fastreward.errors import InputError
from fastreward.rewards.base import NoText, TextReward
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.words import words
from fastreward.scorer import Scorer

Unit = Literal["words", "characters"]

LengthUnit: TypeAlias = Unit | Scorer | Callable[[str], float]
"""What length is counted in: words, characters, a scorer's tokens, or by a function of one's own."""

LONGEST_NGRAM: Final = 32

MOST_NUMBERS: Final = 3_000_000_000
"""Numbers of which any two make one in 63 bits, as a pair of n-grams makes a longer one."""


class LengthReward(TextReward):
    """Reward each completion for being about as long as its reference.

    With r the ratio of the completion's length to the reference's and t the tolerance, the reward is

        min(1, (1 + t) · min(r, 1 / r)),

    so 1.0 while neither is longer than 1 + t times the other, and from there down to 0.0 in the same way for
    too short and too long. With t = 0 that is exp(-|ln r|). With several references the nearest one counts.

    Args:
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        unit: What is counted: ``"words"`` (see `words.words`; of scripts that write no spaces each
            character), ``"characters"``, the tokens of a `Scorer` (uncut, without special
            ones, and with its prompt if it sets one), or a
            function from a text to its length.
        tolerance: t, 0 or more.
        extract: The part of the completion to measure; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0 or
            ``"none"`` for ``None``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above, or, in a call, a function of one's own returned what
            is no length.

    Example:
        >>> reward = LengthReward(tolerance=0.5)
        >>> reward(completions=["one two three", "one"], reference=["one two", "one two three"])
        [1.0, 0.5]

    Source: the formula for t = 0 is the "brevity" term of grpo-mlx, which builds on arXiv 2509.13081.
    """

    def __init__(
        self,
        reference: str = "reference",
        *,
        unit: LengthUnit = "words",
        tolerance: float = 0.0,
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "length_reward",
    ) -> None:
        if not (
            unit in get_args(Unit) if isinstance(unit, str) else callable(unit) or isinstance(unit, Scorer)
        ):
            raise InputError(
                "'words', 'characters', a Scorer or a function as unit",
                describe(unit),
                "Pass unit='words'.",
            )
        if not (_is_number(tolerance) and 0 <= tolerance < math.inf):
            raise InputError(
                "a finite tolerance of 0 or more",
                describe(tolerance),
                "Pass 0.5 for up to half as long again, or 0 for none.",
            )
        self._unit, self._tolerance = unit, float(tolerance)
        super().__init__(
            reference=reference, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        lengths = dict.fromkeys((*texts, *(text for several in references for text in several)), 0.0)
        lengths.update(zip(lengths, self._lengths(list(lengths)), strict=True))
        return [
            max(self._nearness(lengths[text], lengths[reference]) for reference in several)
            for text, several in zip(texts, references, strict=True)
        ]

    def _nearness(self, length: float, wanted: float) -> float:
        longer = max(length, wanted)
        # Two texts of no length are alike: a function of one's own may find none in either.
        return min(1.0, (1 + self._tolerance) * (min(length, wanted) / longer)) if longer else 1.0

    def _lengths(self, texts: list[str]) -> list[float]:
        if isinstance(self._unit, Scorer):
            return [float(len(ids)) for ids in self._unit.tokenizer.content(texts)]
        if isinstance(self._unit, str):
            return [float(len(text if self._unit == "characters" else words(text))) for text in texts]
        return [_length(self._unit(text)) for text in texts]

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        return {
            "reference": shared.pop("reference"),
            "unit": self._unit,
            "tolerance": self._tolerance,
        } | shared


class RepetitionReward(TextReward):
    """Reward each completion for not repeating itself.

    The reward is the number of distinct n-grams of the text divided by the number of all, in (0, 1]: 1.0
    where none occurs twice, near 0 where the same words come over and over. A text shorter than n has no
    n-gram and repeats nothing: 1.0. The time is that of a sort, and the memory linear in the text.

    Words are those of `words.words`: of scripts that write no spaces between words each character counts as
    one, for which a larger n suits. Repetition inside a word ("hahaha") shows by ``unit="characters"`` alone.

    Args:
        n: Units of an n-gram, 1 to 32. Small ones punish what any long text does, such as to say "the" twice.
        unit: ``"words"`` or ``"characters"``.
        extract: The part of the completion to look at; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, the
            least, or ``"none"`` for ``None``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = RepetitionReward(n=2)
        >>> reward(completions=["The heart pumps blood.", "The heart, the heart, the heart."])
        [1.0, 0.4]

    Source: distinct-n (arXiv 1510.03055), with n-grams and not words below the line.
    """

    _LOGGED: ClassVar[tuple[str, ...]] = ("no_text",)
    _NEEDS_REFERENCE: ClassVar[bool] = False

    def __init__(
        self,
        n: int = 3,
        *,
        unit: Unit = "words",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "repetition_reward",
    ) -> None:
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= LONGEST_NGRAM:
            raise InputError(f"an integer from 1 to {LONGEST_NGRAM} as n", describe(n), "Pass n=3.")
        if unit not in get_args(Unit):
            raise InputError("'words' or 'characters' as unit", describe(unit), "Pass unit='words'.")
        self._n = n
        self._unit: Unit = unit
        super().__init__(
            reference=None, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        return [distinct_share(words(text) if self._unit == "words" else text, self._n) for text in texts]

    def _options(self) -> dict[str, object]:
        return {"n": self._n, "unit": self._unit} | super()._options()


def distinct_share(units: Sequence[str], n: int) -> float:
    """The number of distinct n-grams divided by the number of all; 1.0 where there are none.

    Exact. T log T steps, and memory for some 40 bytes a unit whatever n is: n-grams are numbered, not kept.

    Args:
        units: T words, or a string for its T characters.
        n: Units of an n-gram.

    Returns:
        A share in (0, 1].

    Example:
        >>> distinct_share("abab", 2)
        0.6666666666666666
    """
    total = len(units) - n + 1
    if total < 1:
        return 1.0
    grams, numbers = _numbered(units)
    length = 1  # of what is numbered so far
    while length < n:
        if numbers > MOST_NUMBERS:
            grams, numbers = _renumbered(grams)
        # The two halves of a longer one; the last time they overlap, and still tell it from every other.
        apart = min(length, n - length)
        grams = grams[:-apart] * numbers + grams[apart:]
        numbers, length = numbers * numbers, length + apart
    grams.sort()
    return (1 + int(np.count_nonzero(grams[1:] != grams[:-1]))) / total


def _numbered(units: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """A number for each of T units, the same for the same ones: [T], and a bound that they are below."""
    if isinstance(units, str):
        points = np.frombuffer(units.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return points.astype(np.int64), int(points.max()) + 1
    seen: dict[str, int] = {}
    numbers = (seen.setdefault(unit, len(seen)) for unit in units)
    return np.fromiter(numbers, dtype=np.int64, count=len(units)), len(seen)


def _renumbered(grams: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The same with the least numbers there can be."""
    order = np.argsort(grams)
    in_order = grams[order]
    new = np.empty(len(grams), dtype=bool)
    new[:1] = False
    np.not_equal(in_order[1:], in_order[:-1], out=new[1:])
    grams[order] = np.cumsum(new, out=in_order)
    return grams, int(in_order[-1]) + 1


def _length(value: object) -> float:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise InputError(
            "a finite number of 0 or more from the unit function",
            describe(value),
            "Return the text's length.",
        )
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
