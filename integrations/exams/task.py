"""A task: one kind of calculation or inference, what may be asked in it, and how that is put into words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, TypeAlias

from fastreward.integrations.exams.draw import digest

Language: TypeAlias = Literal["en", "it"]
Parameters: TypeAlias = tuple[int | str, ...]
Number: TypeAlias = int | Fraction

HELD_OUT_SHARE: Final = 8
"""One of this many combinations of parameters is kept from training."""

_LARGEST: Final = 10**6  # of the numbers that are written


@dataclass(frozen=True)
class Solution:
    """A task solved for some parameters, in one language.

    Attributes:
        right: The text of the right option.
        wrong: Texts of what typical mistakes lead to, four at least, all different and none of them right.
        fields: What stands for the names in a task's texts; `right` stands for ``{result}``.
        below: Where options have a size, how many of ``wrong``, from the first on, are smaller than the right
            one. A question draws how many of its options are, so that size does not give the answer away.
    """

    right: str
    wrong: tuple[str, ...]
    fields: Mapping[str, str]
    below: int | None = None

    def __post_init__(self) -> None:
        assert len(self.wrong) >= 4, self
        assert len({self.right, *self.wrong}) == 1 + len(self.wrong), self


@dataclass(frozen=True)
class Texts:
    """A task's texts in one language, with names in braces for what `Solution.fields` holds.

    Attributes:
        asked: Wordings of the question that training has.
        held_out: Wordings that it has not.
        explained: Wordings of the worked explanation: rule, substitution, result. The first is the reference.
        told: Sentences for continued pre-training: an example of the task that asks nothing.
    """

    asked: tuple[str, ...]
    held_out: tuple[str, ...]
    explained: tuple[str, ...]
    told: tuple[str, ...]


@dataclass(frozen=True, eq=False)  # there is one of each, and it is known by itself
class Task:
    """One kind of calculation or inference.

    Attributes:
        family: The family that it belongs to.
        name: Its name in the family.
        space: All combinations of parameters; each is an item's identity, whatever the wording and language.
        solve: What follows from one of them.
        texts: Its texts by language.
    """

    family: str
    name: str
    space: Callable[[], Iterable[Parameters]]
    solve: Callable[[Parameters, Language], Solution]
    texts: Mapping[Language, Texts]

    def templates(self, held_out: bool) -> list[tuple[str, int]]:
        """Name the wordings of the question: identifiers, and places in ``asked`` or ``held_out``."""
        texts = self.texts["en"]
        first = len(texts.asked) if held_out else 0
        count = len(texts.held_out) if held_out else len(texts.asked)
        return [(f"{self.family}/{self.name}/{first + i}", i) for i in range(count)]

    def side(self, held_out: bool) -> tuple[Parameters, ...]:
        """List the combinations that training has, or those that it has not."""
        return _sides(self)[held_out]


@functools.cache
def _sides(task: Task) -> tuple[tuple[Parameters, ...], tuple[Parameters, ...]]:
    combinations = list(task.space())
    kept, held_out = (
        tuple(one for one in combinations if is_held_out(task.family, one) is wanted)
        for wanted in (False, True)
    )
    return kept, held_out


def is_held_out(family: str, parameters: Parameters) -> bool:
    """Whether a combination of parameters is kept from training: by its hash, so that no seed can mix them.

    The tasks of a family that ask for different sides of one relation, as distance, speed and time, have the
    same parameters, and so a combination is held out of all of them or of none. The order of parameters does
    not count: ``Aa × aa`` is not known from training if ``aa × Aa`` is held out.

    Example:
        >>> is_held_out("kinematics", (6, 7)) == is_held_out("kinematics", (7, 6))
        True
    """
    return digest("held out", family, *sorted(map(str, parameters))) % HELD_OUT_SHARE == 0


def decimal(value: Number, language: Language) -> str:
    """Write a number with as many decimals as it has, three at most, and the language's decimal mark.

    Example:
        >>> decimal(Fraction(5, 2), "en"), decimal(Fraction(5, 2), "it"), decimal(1200, "it")
        ('2.5', '2,5', '1200')
    """
    thousandths = Fraction(value) * 1000
    assert thousandths.denominator == 1, value
    whole, rest = divmod(int(thousandths), 1000)
    text = f"{whole}.{rest:03d}".rstrip("0").rstrip(".")
    return text.replace(".", ",") if language == "it" else text


def ratio(value: Number) -> str:
    """Write a number as a fraction in lowest terms.

    Example:
        >>> ratio(Fraction(6, 16)), ratio(Fraction(2, 2))
        ('3/8', '1')
    """
    return str(Fraction(value))


def measured(
    right: Number,
    mistakes: Iterable[Number],
    unit: str,
    language: Language,
    fields: Mapping[str, Number | str],
) -> Solution:
    """Solve with a number and its unit.

    Args:
        right: The result.
        mistakes: What typical mistakes lead to. Those that are not above 0, have more than three decimals or
            are right by chance are left out; slips of calculation take their place where too few remain.
        unit: What stands behind the number, or ``""``.
        language: For the decimal mark.
        fields: The fields of the texts, numbers or text.
    """
    sides = _sides_of(right, [Fraction(value) for value in mistakes if _is_plain(Fraction(value))])
    down = (right - 1, Fraction(right, 10), Fraction(right, 2), right - 2, Fraction(right, 100))
    up = (right + 1, right * 10, right * 2, right + 2, right + 10)
    for side, slips in zip(sides, (down, up), strict=True):
        _fill(side, [Fraction(slip) for slip in slips if _is_plain(Fraction(slip))])
    ending = f" {unit}" if unit else ""
    return Solution(
        decimal(right, language) + ending,
        tuple(decimal(value, language) + ending for side in sides for value in side),
        written(fields, language),
        below=len(sides[0]),
    )


def chance(
    right: Fraction, mistakes: Iterable[Number], language: Language, fields: Mapping[str, Number | str]
) -> Solution:
    """Solve with a probability, written as a fraction.

    Args:
        right: The result.
        mistakes: What typical mistakes lead to, four different ones at least; those outside of 0 to 1, or
            right by chance, are left out.
        language: Of the numbers among the fields.
        fields: The fields of the texts, numbers or text.
    """
    sides = _sides_of(right, [Fraction(value) for value in mistakes if 0 <= value <= 1])
    return Solution(
        ratio(right),
        tuple(ratio(value) for side in sides for value in side),
        written(fields, language),
        below=len(sides[0]),
    )


def _sides_of(right: Number, mistakes: list[Fraction]) -> tuple[list[Fraction], list[Fraction]]:
    """Those of the mistakes that are below what is right, and those above; each once."""
    unique = list(dict.fromkeys(mistakes))
    return [value for value in unique if value < right], [value for value in unique if value > right]


def _fill(side: list[Fraction], slips: list[Fraction]) -> None:
    """Add slips to one side until it has as many as there are wrong options."""
    for slip in slips:
        if len(side) < 4 and slip not in side:
            side.append(slip)


def written(fields: Mapping[str, Number | str], language: Language) -> dict[str, str]:
    """Write the numbers among some fields as `decimal` does."""
    return {
        name: value if isinstance(value, str) else decimal(value, language) for name, value in fields.items()
    }


def _is_plain(value: Fraction) -> bool:
    return 0 < value < _LARGEST and 1000 % value.denominator == 0
