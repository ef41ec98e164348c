"""Answers that leave open what they mean: another one follows, "or C", "(or maybe 4)", "oppure la D"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_SIGNS: Final = re.compile(r"[\s*_,;/&+|()\"'“”’…–—.-]{0,12}")
_JOINT_SIGNS: Final = frozenset(",;/&+|")
_OPEN_SIGNS: Final = frozenset("/|")  # "B/C"

# Words of one letter in lower case alone: "E" and "O" are letters of options.
_OPEN: Final = (
    r"(?i:or|oppure|ovvero|maybe|perhaps|possibly|potentially|alternatively|otherwise|could|might|may|vs"
    r"|versus|forse|magari|eventualmente|altrimenti|potrebbe|può|in\salternativa)|o"
)
_AND: Final = r"(?i:and|as\swell\sas|ed|che)|e"
_BUT: Final = r"(?i:but|though|although|ma|però|anche\sse)"
_BESIDE: Final = (
    r"(?i:also|even|else|just|then|equally|rather|be|it|that|this|is|it['’]s|either|both|sia|the|la|il|lo|anche"
    r"|invece|essere|dire|option|choice|answer|letter|number|opzione|alternativa|risposta|lettera|scelta"
    r"|numero)|l(?=['’])|è"
)
_WORD: Final = re.compile(rf"(?:(?P<open>{_OPEN})|(?P<and>{_AND})|(?P<but>{_BUT})|{_BESIDE})(?!\w)")
_MOST_WORDS: Final = 10


def alternatives(text: str) -> Iterator[tuple[int, bool]]:
    """Find where another answer may begin, in a text that follows an answer.

    Before such a place nothing stands but signs and words that join or hedge ("or", "and", "but it might be
    the option", "o forse la"). A sentence that has ended goes on with one that hedges alone ("B. Or C.").

    Args:
        text: What follows an answer, from its first character on.

    Yields:
        Places in the text, and whether what stands before them leaves open which of the two answers is meant:
        "or" does, a comma and "and" do not.

    Example:
        >>> [(", or maybe C"[place:], is_open) for place, is_open in alternatives(", or maybe C")]
        [('or maybe C', False), ('maybe C', True), ('C', True)]
        >>> list(alternatives(" because A is too small"))
        []
    """
    place, joined, is_open, contrast = 0, False, False, False
    for _ in range(_MOST_WORDS):
        signs = _end_of_signs(text, place)
        between, place = text[place:signs], signs
        if not is_open and ("." in between or "\n" in between) and not _opens(text, place):
            return
        joined = joined or not _JOINT_SIGNS.isdisjoint(between)
        is_open = is_open or not _OPEN_SIGNS.isdisjoint(between)
        if place == len(text):
            return
        if is_open or (joined and not contrast):
            yield place, is_open
        word = _WORD.match(text, place)
        if word is None:
            return
        joined = joined or word["and"] is not None
        is_open = is_open or word["open"] is not None
        contrast = contrast or word["but"] is not None  # "B, but C is wrong" is none
        if not (joined or is_open or contrast):
            return
        place = word.end()


def leaves_open(text: str) -> bool:
    """Whether a text that follows an answer goes on with one that may be meant instead.

    Example:
        >>> leaves_open(" (or maybe the lung)"), leaves_open(", and the lung is not")
        (True, False)
    """
    return any(is_open and any(map(str.isalnum, text[place:])) for place, is_open in alternatives(text))


def _end_of_signs(text: str, place: int) -> int:
    signs = _SIGNS.match(text, place)
    return signs.end() if signs else place


def _opens(text: str, place: int) -> bool:
    word = _WORD.match(text, place)
    return word is not None and word["open"] is not None
