"""Numbers as people and models write them, in English and in Italian."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fastreward.rewards.hedges import alternatives

DecimalMark = Literal["auto", ".", ","]
"""Which mark stands before the decimals; ``"auto"`` tells by how it is used."""

_RAISED: Final = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR: Final = re.compile("[¼-¾⅐-⅞]")
_FOREIGN_DIGIT: Final = re.compile(r"[^\D0-9]")
_LATEX_FRACTION: Final = re.compile(r"\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_LATEX_GAP: Final = re.compile(r"\\[,;:! ]")
_DASHES: Final = str.maketrans("−–—‐‑", "-----")

_EXPONENT: Final = r"\s?[{(]?\s?(?P<%s>[+-]?\d{1,4})(?!\d)\s?[)}]?"
_NUMBER: Final = re.compile(
    r"(?P<sign>[+-]?)\s?"
    r"(?P<digits>\d{1,3}(?:[ '’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|[.,]\d+)"
    r"(?:[eE](?P<e>[+-]?\d{1,4})(?!\w)"
    rf"|\s?(?:[×x*·⋅]|\\times|\\cdot)\s?10\s?(?:\^|\*\*){_EXPONENT % 'ten'}"
    rf"|\s?(?:\^|\*\*){_EXPONENT % 'power'})?"
)
_OF_MIXED: Final = re.compile(r" (\d{1,9})/(\d{1,9})(?![/\d])")
_LEAD: Final = re.compile(r"[\s$€£¥~≈=:(*_\"“]{0,9}")
_GOES_ON: Final = re.compile(r"\s?(?:[+\-*/×·⋅^:]|\\times|\\cdot)\s?[\d(\\]|\s?=")
_JOINT: Final = re.compile(
    r"\s?(?:[^\s\d,;/&-]{1,12}\s?)?(?:,\s|[;&/-]|\b(?:or|and|to|o|oppure|e|ed|a)\b)\s?[$€£]?(?=[+-]?[.,]?\d)",
    re.IGNORECASE,
)
_CURRENCY: Final = re.compile(r"[$€£]?\s?(?=[+-]?[.,]?\d)")
_UNIT: Final = re.compile(r"(?:[^\d\s.,;:!?()\[\]{}\"“]\S{0,15}(?: [^\d\s]\S{0,15})?)?")
_UNIT_WORD: Final = re.compile(r"\s?[^\s\d,;/&()-]{1,12}(?=[\s,;/()])")
LONGEST_UNIT: Final = 16
TAIL_LENGTH: Final = 64


class Ambiguous:
    """Stands for an answer that names two things at once."""


AMBIGUOUS: Final = Ambiguous()


@dataclass(frozen=True)
class Quantity:
    """A number and what stands behind it.

    Attributes:
        values: The number; two of them where it can be read in two ways ("1.234").
        tail: The beginning of what follows it: a unit, or any other text.
    """

    values: tuple[float, ...]
    tail: str = ""

    @property
    def has_unit(self) -> bool:
        """Whether what follows is short enough to be a unit and nothing else, or is nothing."""
        return len(self.tail) <= LONGEST_UNIT and _UNIT.fullmatch(self.tail) is not None

    def equals(self, reference: Quantity, tolerance: float) -> bool:
        """Whether this is the reference's number, with its unit if the reference has one.

        Args:
            reference: What it should be.
            tolerance: How far off it may be, relative to the reference.

        Returns:
            Whether a reading of the one is a reading of the other.
        """
        pairs = itertools.product(self.values, reference.values)
        near = any(abs(mine - wanted) <= tolerance * abs(wanted) for mine, wanted in pairs)
        return near and _begins_with(self.tail, reference.tail)


def read_quantity(text: str, decimal: DecimalMark = "auto") -> Quantity | Ambiguous | None:
    """Read the number that a text begins with.

    Understood are signs, decimals after a point or a comma, thousands set apart by a point, a comma, a space
    or an apostrophe, fractions (3/4, ¾, 1 1/2, LaTeX's too), powers (10^-7, 10⁻⁷), the scientific notation in
    its forms, a currency before it, and an equation, of which the right-hand side counts. A mark that may set
    apart thousands as well as decimals ("1.234") leaves two readings, unless ``decimal`` tells.

    Args:
        text: What should be a number; a few hundred characters at most.
        decimal: Which mark stands before the decimals.

    Returns:
        The quantity; `AMBIGUOUS` for two different numbers ("3 or 4", "3-4"); ``None`` where there is none.

    Example:
        >>> read_quantity("3,5 kg")
        Quantity(values=(3.5,), tail='kg')
        >>> read_quantity("1.234,5"), read_quantity("1.234")
        (Quantity(values=(1234.5,), tail=''), Quantity(values=(1234.0, 1.234), tail=''))
        >>> read_quantity("3 o 4") is AMBIGUOUS
        True
    """
    return _read(_plain(text), decimal)


def with_carets(text: str) -> str:
    """Write raised digits after a caret, which NFKC would set down beside the number.

    Example:
        >>> with_carets("10⁻⁷ m²")
        '10^-7 m^2'
    """
    return _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("−", "-"), text)


def _read(text: str, decimal: DecimalMark) -> Quantity | Ambiguous | None:
    found = _number(text, _end(_LEAD, text), decimal)
    unfinished = found is None or _GOES_ON.match(text, found[1])
    if unfinished:
        right = re.split(r"\n|[.;] ", text, maxsplit=1)[0].rpartition("=")[2]
        if len(right) < len(text) and right.strip() and "=" in text:
            return _read(right, decimal)
    if found is None:
        return None
    values, end = found
    for place in _seconds(text, end):
        second = _number(text, place, decimal)
        if second and not {*values} & {*second[0]}:
            return AMBIGUOUS
    if unfinished:
        return None
    return Quantity(values, " ".join(text[end : end + TAIL_LENGTH].split()).rstrip('.,;:!)]}*_"”'))


def _seconds(text: str, end: int) -> Iterator[int]:
    """Where a second number may begin behind one that ends there: "3 or 4", "3 kg, or maybe 4 kg"."""
    if joint := _JOINT.match(text, end):
        yield joint.end()
    for start in {end, _end_of_unit(text, end)}:
        for place, is_open in alternatives(text[start:]):
            if is_open and (number := _CURRENCY.match(text, start + place)):
                yield number.end()


def _end_of_unit(text: str, end: int) -> int:
    """Where the word behind a number ends that may be its unit."""
    unit = _UNIT_WORD.match(text, end)
    return unit.end() if unit else end


def _number(text: str, start: int, decimal: DecimalMark) -> tuple[tuple[float, ...], int] | None:
    """The readings of the number that stands there, and where it ends."""
    found = _term(text, start, decimal)
    if found is None:
        return None
    values, end = found
    if mixed := _OF_MIXED.match(text, end):
        part, end = int(mixed[1]) / (int(mixed[2]) or math.nan), mixed.end()
        values = tuple(value + math.copysign(part, value) for value in values)
    elif (slash := re.compile(r" ?/ ?(?=\d)").match(text, end)) and (
        below := _term(text, slash.end(), decimal)
    ):
        values = tuple(a / b for a, b in itertools.product(values, below[0]) if b)
        end = below[1]
    values = tuple(value for value in values if math.isfinite(value))
    return (values, end) if values and not re.compile(r"[/:]\d").match(text, end) else None


def _term(text: str, start: int, decimal: DecimalMark) -> tuple[tuple[float, ...], int] | None:
    """A number without a division."""
    match = _NUMBER.match(text, start)
    if match is None:
        return None
    exponent = match["e"] or match["ten"]
    values = []
    for digits in _readings(match["digits"], decimal):
        try:
            value = float(f"{digits}e{exponent}" if exponent else digits)
            value = value ** int(match["power"]) if match["power"] else value
        except (OverflowError, ZeroDivisionError):
            continue
        values.append(-value if match["sign"] == "-" else value)
    return tuple(values), match.end()


def _readings(digits: str, decimal: DecimalMark) -> list[str]:
    """What the digits and marks of a number can mean, in Python's own notation."""
    spaced = re.sub(r"[ '’]", "", digits)
    marks = [mark for mark in ".," if mark != decimal and decimal != "auto"] or list(".,")
    readings = [
        reading
        for thousands in marks
        if (reading := _with_thousands(spaced, thousands, spaced != digits)) is not None
    ]
    return list(dict.fromkeys(readings))


def _with_thousands(digits: str, thousands: str, already: bool) -> str | None:
    """Read the digits where this mark sets thousands apart, and the other one decimals."""
    whole, *parts = digits.split("," if thousands == "." else ".")
    if len(parts) > 1 or any(thousands in part for part in parts):
        return None
    groups = whole.split(thousands)
    if len(groups) > 1:
        sound = not already and 1 <= len(groups[0]) <= 3 and groups[0][0] != "0"
        if not sound or any(len(group) != 3 for group in groups[1:]):
            return None
    return ".".join(["".join(groups) or "0", *parts])


def _plain(text: str) -> str:
    """One notation for what is written in several."""
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/"), text)
    text = unicodedata.normalize("NFKC", with_carets(text)).translate(_DASHES)
    text = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    text = _LATEX_FRACTION.sub(r"\1/\2", _LATEX_GAP.sub("", text))
    return text.replace("{,}", ",").replace("\\%", "%").replace("^\\circ", "°")


def _begins_with(tail: str, unit: str) -> bool:
    """Whether the unit stands at the beginning, spaces aside, and ends there."""
    wanted = unit.replace(" ", "")
    rest = iter(enumerate(tail))
    end = 0
    for letter in wanted:
        end, found = next(((i + 1, c) for i, c in rest if c != " "), (0, ""))
        if found != letter:
            return False
    return not wanted or not tail[end : end + 1].isalnum()


def _end(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0
