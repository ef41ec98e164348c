"""Where in a text its answer stands: tags, LaTeX boxes, sentences that state it, lines of its own.

English and Italian. Every pattern has bounded repeats alone, so that the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from fastreward.rewards.hedges import alternatives, leaves_open

LONGEST_ANSWER: Final = 300
"""Characters of a text that are read as an answer, from where the answer begins."""

MOST_STATEMENTS: Final = 64
"""Of a text that states an answer more often, the last of these are read."""

_NOUN: Final = (
    r"(?:answer|solution|result|option|choice|letter|(?:correct|right|best)\s{1,3}(?:one|statement|alternative)"
    r"|risposta|soluzione|risultato|opzione|alternativa|scelta|lettera|affermazione)"
)
_QUALITY: Final = r"(?:\s{1,3}(?:(?:corrett|esatt|giust)[ao]|finale|migliore))?"
_OF_WHAT: Final = r"(?:\s{1,3}(?:to|of|for|here|alla|allo|al|del|della|di|per)\b[^.:;!?\n]{0,60}?)?"
_IS: Final = (
    r"(?:[\s*_`\"]{0,6}[:：=]"
    r"|[*_`\"]{0,3}\s{1,3}(?:is|was|would\sbe|should\sbe|must\sbe|è|é|e\u0300|e['’]|sarà|sarebbe"
    r"|dovrebbe\sessere|deve\sessere)(?![\w'’])(?:\s{0,3}:)?)"
)
_STATES: Final = re.compile(
    rf"\b{_NOUN}{_QUALITY}{_OF_WHAT}{_IS}"
    r"|\bI\s(?:(?:would|will|\w{0,12}ly)\s)?(?:choose|chose|select|pick|go\swith)\b"
    r"|\b(?:scelgo|rispondo|seleziono)\b|\bopto\sper\b|####"
    r"|\bè\s(?:quindi\s)?(?:corrett|esatt|giust)[ao](?=\s(?:la|l['’]|il|lo)\b)",
    re.IGNORECASE,
)
_IS_SAID: Final = re.compile(  # "B is the correct answer": the letter comes first
    r"(?<![\w'’-])\(?[A-Z]\)?[*_\"]{0,3}\s{1,3}(?:is|è|é|e['’])\s{1,3}"
    r"(?:(?:the|la|quella|l['’])\s{0,2})?(?:only\s|best\s|unica\s)?"
    r"(?:correct|right|true|answer|corretta|giusta|esatta|vera|risposta)(?!\w)"
)
_ALSO_SAID: Final = re.compile(r"\b[A-Z]\)?\s{0,3}(?:,|/|&|and|or|e|o|oppure)\s{1,3}\(?$")
_NOT_STATED: Final = re.compile(
    r"\b(?:wrong|incorrect|false|if|whether|unless|suppose|assume|not|never|neither|nor|se|qualora|non|né)"
    r"[\s,]{1,3}(?:(?:the|that|my|a|is|option|first|final|correct|right|best|la|l['’]|una|che|opzione|risposta)"
    r"\s{0,3}){0,4}[*_\"]{0,3}$",
    re.IGNORECASE,
)
_OR_ELSE: Final = re.compile(
    r"\b(?:or|oppure|ovvero|o)[\s,]{1,3}(?:(?:maybe|perhaps|possibly|else|that|the|final|correct|right|best"
    r"|option|forse|magari|che|anche|la|l['’]|il|opzione|risposta)\s{0,3}){0,5}[*_\"(]{0,3}$",
    re.IGNORECASE,
)
_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s?\{")
_BRACE: Final = re.compile(r"[{}]")
_BOX_EDGE: Final = re.compile(r"\$|\\[()\[\]]")


class Statement(NamedTuple):
    """What a text says the answer is.

    Attributes:
        value: The text from where the answer begins, at most `LONGEST_ANSWER` characters of it.
        is_alternative: Whether "or" stands before it: the statement before this one may be meant instead.
    """

    value: str
    is_alternative: bool


def tagged(tag: str, text: str) -> list[str]:
    """What stands in the complete pairs of a tag, each once, in order; of nested ones in the innermost.

    Example:
        >>> tagged("answer", "<answer> B </answer> and <answer>C")
        ['B']
    """
    found: dict[str, None] = {}
    start = None
    for match in re.finditer(rf"<(/?){re.escape(tag)}>", text, re.IGNORECASE):
        if not match[1]:
            start = match.end()
        elif start is not None:
            found[text[start : match.start()].strip()] = None
            start = None
    return list(found)


def boxed(text: str) -> str | None:
    r"""What stands in the last complete ``\boxed{…}``, which may hold braces of its own.

    With another one before it and nothing but "or", "and" or a comma between them, both.

    Example:
        >>> boxed(r"Hence \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> boxed(r"\boxed{B} or $\boxed{C}$")
        'B or C'
    """
    last: tuple[int, str] | None = None
    for match in reversed(list(_BOX.finditer(text))[-MOST_STATEMENTS:]):
        end = _end_of_box(text, match.end())
        if end is None:
            continue
        content = text[match.end() : end].strip()
        if last is not None:
            return f"{content} or {last[1]}" if _joins(text[end + 1 : last[0]]) else last[1]
        last = match.start(), content
    return None if last is None else last[1]


def _end_of_box(text: str, start: int) -> int | None:
    """The place of the brace that closes the box whose content begins at `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + LONGEST_ANSWER):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    return None


def _joins(between: str) -> bool:
    """Whether two boxes with this between them are two answers side by side."""
    if len(between) > LONGEST_ANSWER:
        return False
    between = _BOX_EDGE.sub(" ", between)
    return any(place == len(between) for place, _ in alternatives(between + "x"))


def stated(text: str) -> Iterator[Statement]:
    """What a text says the answer is, the last statement first.

    "The answer is …", "Answer: …", "B is correct", "I choose …", "#### …" and their like in English and
    Italian are statements; what is said of a wrong answer or after "if" is not.

    Example:
        >>> [statement.value for statement in stated("Risposta: A? No. La risposta corretta è la B.")]
        ['la B.', 'A? No. La risposta corretta è la B.']
    """
    found = [
        (match.start(), text[match.end() : match.end() + LONGEST_ANSWER]) for match in _STATES.finditer(text)
    ]
    found += [(match.start(), _said(text, match)) for match in _IS_SAID.finditer(text)]
    for place, value in sorted(found, key=lambda each: each[0], reverse=True)[:MOST_STATEMENTS]:
        before = text[max(0, place - 40) : place]
        if not _NOT_STATED.search(before):
            yield Statement(value.strip(), _OR_ELSE.search(before) is not None)


def _said(text: str, match: re.Match[str]) -> str:
    """The letter that is called right, with another one that is named before it or after the statement."""
    start = max(0, match.start() - 12)
    also = _ALSO_SAID.search(text[start : match.start()])
    letter = re.compile(r"\(?[A-Z]\)?").match(text, match.start())
    first = start + also.start() if also else match.start()
    said = text[first : letter.end() if letter else match.end()]
    after = text[match.end() : match.end() + LONGEST_ANSWER]
    return said + after if leaves_open(after) else said


def outer_lines(text: str) -> list[str]:
    r"""The last and the first line that are not blank, in this order; one of them if there is no other.

    Example:
        >>> outer_lines("B\n\nBecause of the valves.")
        ['Because of the valves.', 'B']
    """
    stripped = text.strip()
    last = stripped[stripped.rfind("\n") + 1 :].strip()
    first = stripped.partition("\n")[0].strip()
    return [last[:LONGEST_ANSWER], first[:LONGEST_ANSWER]] if "\n" in stripped else [last] if last else []
