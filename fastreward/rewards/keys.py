"""What the right answer to a question is: an option, a number or a text, and how a completion may put it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Final, Literal, Protocol, TypeAlias

from fastreward.errors import InputError
from fastreward.rewards.completion import describe
from fastreward.rewards.hedges import leaves_open
from fastreward.rewards.options import Options, clauses, plain, unwrapped, without_fillers, wording
from fastreward.rewards.quantities import AMBIGUOUS, Ambiguous, DecimalMark, Quantity, read_quantity

Kind = Literal["auto", "option", "number", "text"]
Answer: TypeAlias = str | Quantity | tuple[str, ...]

_MARKED: Final = re.compile(r"\s*\(?([A-Za-z])(?:[).:]\s+\S.*|[).:]*\s*)", re.DOTALL)
# "C. elegans", "B. lung", "C. S. Lewis": a name with its initials, or an option's letter and wording.
_NAME_OR_OPTION: Final = re.compile(r"\s*([A-Za-z])\.\s+(?:[A-Z]\.\s+)*[^\W\d_][\w'’-]*[.\s]*")

_OR: Final = re.compile(r"\s(?:or|oppure|ovvero|o|/)\s", re.IGNORECASE)


class Key(Protocol):
    """The right answer to one question."""

    def read(self, text: str, *, bare: bool = False) -> Answer | Ambiguous | None:
        """The answer that a text begins with; ``bare`` if nothing announced that it does."""

    def accepts(self, answer: Answer) -> bool:
        """Whether this is the right answer."""


@dataclass(frozen=True)
class OptionKey:
    """One option of several is right."""

    right: str
    options: Options

    def read(self, text: str, *, bare: bool = False) -> str | Ambiguous | None:
        """The letter of the option that is named."""
        return self.options.letter(text, bare=bare)

    def accepts(self, answer: Answer) -> bool:
        """Whether it is the right letter."""
        return answer == self.right


@dataclass(frozen=True)
class NumberKey:
    """A number is right, with its unit if it has one."""

    right: Quantity
    tolerance: float
    decimal: DecimalMark

    def read(self, text: str, *, bare: bool = False) -> Quantity | Ambiguous | None:
        """The number; behind one that nothing announced, a unit of one word may stand and no more."""
        found = read_quantity(without_fillers(unwrapped(text))[0], self.decimal)
        if bare and isinstance(found, Quantity) and not (found.has_unit and " " not in found.tail):
            return None
        return found

    def accepts(self, answer: Answer) -> bool:
        """Whether it is the number, within the tolerance."""
        return isinstance(answer, Quantity) and answer.equals(self.right, self.tolerance)


@dataclass(frozen=True)
class TextKey:
    """Some words are right, whatever their case, article, spaces and surrounding punctuation."""

    right: str

    def read(self, text: str, *, bare: bool = False) -> tuple[str, ...] | Ambiguous | None:
        """What the text says as a whole, and as far as each place where its first clause may end.

        Of a text that nothing announced, the whole counts, and only if it is right: else it is just a text.
        One that begins with what is right and goes on with "or" something else names two answers.
        """
        if bare:
            return (self.right,) if wording(text) == self.right else None
        text = without_fillers(plain(text))[0]
        readings = clauses(text)
        said = tuple(dict.fromkeys(filter(None, map(wording, readings))))
        if said[:1] != (self.right,) and self._is_one_of_two(text, readings):
            return AMBIGUOUS
        return said or None

    def _is_one_of_two(self, text: str, readings: list[str]) -> bool:
        """Whether what is right stands at the beginning, and another answer beside it."""
        ends = [len(reading) for reading in readings] + [match.start() for match in _OR.finditer(text)]
        return any(wording(text[:end]) == self.right and leaves_open(text[end:]) for end in ends)

    def accepts(self, answer: Answer) -> bool:
        """Whether it is the right text."""
        return isinstance(answer, tuple) and self.right in answer


@dataclass(frozen=True)
class KeyMaker:
    """Makes the key from what a data set says is right.

    Attributes:
        kind: What all answers are; ``"auto"`` tells by each of them.
        letters: The options' letters where the options themselves are not known.
        tolerance: Of numbers, relative to the right one.
        decimal: Which mark stands before the decimals.
    """

    kind: Kind
    letters: str
    tolerance: float
    decimal: DecimalMark

    def __call__(self, right: object, options: Options | None, where: str) -> Key:
        """Make one.

        Args:
            right: The right answer, not missing: a string or a number.
            options: The question's options, if they are known.
            where: What to call the entry in a message.

        Raises:
            InputError: It is neither, or not what the kind or the options allow, or cannot be told to be one
                kind or the other.
        """
        if isinstance(right, bool) or not isinstance(right, str | Real):
            raise _unfit("a string or a number as answer", right, where, "Convert the column.")
        text = str(right)
        if self.kind == "option" or (self.kind == "auto" and options is not None):
            return self._option(text, options, where)
        if self.kind == "text":
            return self._text(text, where)
        if isinstance(right, Real) and not _is_finite(right):
            raise _unfit("a finite number as answer", right, where, "Pass None where there is none.")
        if self.kind == "auto" and (letter := self._letter(text, self.letters)):
            if _NAME_OR_OPTION.fullmatch(text):
                raise _unfit(
                    "an answer that can be told to be an option or a name",
                    text,
                    where,
                    f"Pass a column of options; or kind='option', or {letter!r} alone; or kind='text'.",
                )
            return OptionKey(letter, Options(self.letters))
        number = Quantity((float(right),)) if isinstance(right, Real) else read_quantity(text, self.decimal)
        if isinstance(number, Quantity) and number.has_unit:
            return NumberKey(number, self.tolerance, self.decimal)
        if self.kind == "number":
            raise _unfit("a number as answer", right, where, "Pass kind='text' if it is none.")
        return self._text(text, where)

    def _option(self, text: str, options: Options | None, where: str) -> OptionKey:
        known = options or Options(self.letters)
        letter = self._letter(text, known.letters)
        if len(text.strip()) > 1:  # "E. coli" is an option's wording and not the letter E
            letter = known.named_by_wording(text, bare=True) or letter
        if letter is None:
            expected = f"the letter or the wording of an option ({', '.join(known.letters)}) as answer"
            raise _unfit(expected, text, where, "Give a number that counts options as a letter.")
        return OptionKey(letter, known)

    @staticmethod
    def _letter(text: str, letters: str) -> str | None:
        marked = _MARKED.fullmatch(text)
        return marked[1].upper() if marked and marked[1].upper() in letters else None

    @staticmethod
    def _text(text: str, where: str) -> TextKey:
        if not (right := wording(text)):
            raise _unfit("a letter or a digit in the answer", text, where, "Pass None where there is none.")
        return TextKey(right)


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _unfit(expected: str, received: object, where: str, remedy: str) -> InputError:
    return InputError(expected, f"{describe(received)} in {where}", remedy)
