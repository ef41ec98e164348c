"""AnswerReward: whether a completion's answer is the right one, as a trainer's reward function."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Final, Literal, TypeGuard, get_args

from fastreward.errors import InputError
from fastreward.rewards.base import (
    ColumnKind,
    NoText,
    RewardCounts,
    TextReward,
    check_column,
    is_missing,
    several,
)
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.keys import Answer, Key, KeyMaker, Kind, OptionKey
from fastreward.rewards.options import Options
from fastreward.rewards.quantities import AMBIGUOUS, Ambiguous, DecimalMark
from fastreward.rewards.statements import LONGEST_ANSWER, boxed, outer_lines, stated, tagged

Place = Literal["tag", "boxed", "statement", "line"]

_TAG_NAME: Final = re.compile(r"[\w-]+")
_MARKED_LINE: Final = re.compile(r"^[ \t*_(\[>#-]{0,6}([A-Za-z])(?:[)\].:]|(?=[ \t*_]{0,6}$))", re.MULTILINE)
_LETTER_LINE: Final = re.compile(r"^[ \t*_(\[>#-]{0,6}([A-Za-z])[ \t*_)\].:]{0,6}$", re.MULTILINE)


@dataclass(frozen=True)
class AnswerCounts(RewardCounts):
    """`RewardCounts`, and how many of the scored gave no answer.

    Attributes:
        samples: Completions handed over.
        scored: Those with an answer to compare with and some text, of which ``no_answer`` are a part.
        missing_reference: Those without a right answer; their reward is ``None``.
        no_text: Those with a right answer from which there was nothing to extract.
        no_answer: Those of the scored that give no answer, or two at once.
    """

    no_answer: int = 0


class AnswerReward(TextReward):
    r"""Reward each completion by whether its answer is the right one.

    The answer is an option's letter, a number or some words. It is looked for in the places of ``where``, in
    their order, and the first of them that a text has decides:

    - ``"tag"``: what stands in ``<answer>…</answer>``. Several such pairs must agree.
    - ``"boxed"``: what stands in the last ``\boxed{…}``.
    - ``"statement"``: the last sentence that says what the answer is, in English or Italian: "Answer: B",
      "the correct answer is (B)", "B is correct", "I choose B", "la risposta corretta è la B", "opzione: B",
      "scelgo la B", "#### 42". What is said of a wrong answer, or after "if" or "not", is none.
    - ``"line"``: the last or the first line, if it holds nothing but an answer ("B", "(b)", "B) the lung",
      "42 kg"). A line that could be a sentence ("A cell divides", "C is constant") is none, nor is one of a
      list of options.

    What names two different answers ("A or B", "B, oppure forse la C", "3-4", "Paris, or London", two tags
    that differ, a letter beside the wording of another option) is no answer, whichever comes first. What is
    compared:

    - An option: its letter, in upper or lower case, with or without brackets, "option B", "B. the lung", "la
      B"; or, if there is a column of ``options``, its wording.
    - A number: 3,5 as 3.5, 1,234,567 as 1.234.567, fractions, powers, scientific notation, LaTeX. "1.234"
      may be one and a bit or a thousand and more, and is right if either is, unless ``decimal`` tells. A unit
      counts only if the right answer has one. Numbers in words are not read.
    - Some words: without regard to case, article, white space and the punctuation around them. A reason may
      follow ("Paris, because …").

    Args:
        answer: Name of the column with the right answers: for each completion a string, a number, or a list
            or array of those of which any is right. It is missing where it is ``None``, NaN, blank, or a list
            of nothing else.
        kind: What the answers are: ``"option"``, ``"number"``, ``"text"``, or ``"auto"`` to tell by each
            right answer: one of the ``letters``, alone or marked ("B)", "B. the lung"), is an option, as is
            all where options are given; else a number with or without a unit is one; all else is text. A
            letter, a full stop and one word may be an option or a name ("B. lung", "C. elegans"), and without
            a column of options ``"auto"`` refuses it: say which it is.
        options: Name of the column with the options, if there is one: for each completion a list of texts, or
            a mapping from letter to text, or ``None``.
        where: The places in which to look, in order; a single string is one place.
        tag: The tag's name.
        letters: The letters that options have where there is no column of options.
        tolerance: How far a number may be off, relative to the right one.
        decimal: ``"."`` or ``","`` if that alone stands before decimals; ``"auto"`` tells by each number.
        right: What the right answer is worth.
        wrong: What another answer is worth.
        no_answer: What a text without an answer is worth; ``None`` leaves it out.
        extract: The part of the completion to look at; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, so that
            it is punished, or ``"none"`` for ``None``, so that the trainer leaves it out.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above, or, in a call, a right answer is not of its kind or
            not among its options.

    Example:
        >>> reward = AnswerReward("answer")
        >>> reward(
        ...     completions=[
        ...         "A valve. <answer>B</answer>",
        ...         "La risposta corretta è la B.",
        ...         "A or B",
        ...         "It is 3,5.",
        ...     ],
        ...     answer=["B", "A", "A", None],
        ... )
        [1.0, 0.0, 0.0, None]
        >>> reward.counts
        AnswerCounts(samples=4, scored=3, missing_reference=1, no_text=0, no_answer=1)
    """

    _LOGGED: ClassVar[tuple[str, ...]] = (*TextReward._LOGGED, "no_answer")
    _NO_COUNTS: ClassVar[RewardCounts] = AnswerCounts()

    def __init__(
        self,
        answer: str = "answer",
        *,
        kind: Kind = "auto",
        options: str | None = None,
        where: Place | Sequence[Place] = ("tag", "boxed", "statement", "line"),
        tag: str = "answer",
        letters: str = "ABCDE",
        tolerance: float = 1e-6,
        decimal: DecimalMark = "auto",
        right: float = 1.0,
        wrong: float = 0.0,
        no_answer: float | None = 0.0,
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "answer_reward",
    ) -> None:
        check_column("answer", answer)
        if options is not None:
            check_column("options", options)
        self._options_column = options
        self._where = _places(where)
        self._tag = _tag_name(tag)
        self._make_key = _key_maker(kind, letters, tolerance, decimal)
        self._worth = (_worth("right", right), _worth("wrong", wrong))
        self._no_answer = None if no_answer is None else _worth("no_answer", no_answer)
        super().__init__(
            reference=answer, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def columns_read(self) -> dict[str, ColumnKind]:
        """The columns of right answers and, if there is one, of options."""
        assert self._reference is not None
        options: dict[str, ColumnKind] = {}
        if self._options_column is not None:
            options[self._options_column] = "options"
        return {self._reference: "answer", **options}

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[list[Key]]:
        assert self._reference is not None
        answers = self._read_column(self._reference, columns, count)
        options: list[object] = [None] * count
        if (name := self._options_column) is not None:
            options = self._read_column(name, columns, count)
        return [
            self._keys(right, choices, f"{self._reference}[{i}]", f"{name}[{i}]")
            for i, (right, choices) in enumerate(zip(answers, options, strict=True))
        ]

    def _keys(self, right: object, choices: object, where: str, where_options: str) -> list[Key]:
        given = [
            entry
            for entry in several(right)
            if not is_missing(entry) and not (isinstance(entry, str) and not entry.strip())
        ]
        if not given:
            return []
        options = None if is_missing(choices) else Options.read(choices, where_options)
        return [self._make_key(entry, options, where) for entry in given]

    def _judge(self, texts: list[str], references: list[Any]) -> tuple[Sequence[float | None], RewardCounts]:
        verdicts = [self._verdict(text, keys) for text, keys in zip(texts, references, strict=True)]
        scores = [self._no_answer if verdict is None else self._worth[not verdict] for verdict in verdicts]
        return scores, AnswerCounts(scored=len(texts), no_answer=verdicts.count(None))

    def _score(self, texts: list[str], references: list[Any]) -> Sequence[float | None]:
        return self._judge(texts, references)[0]

    def _verdict(self, text: str, keys: list[Key]) -> bool | None:
        """Whether any of the keys accepts the answer; None if none of them finds one."""
        found = [(key, self._find(text, key)) for key in keys]
        answers = [
            (key, answer) for key, answer in found if answer is not None and not isinstance(answer, Ambiguous)
        ]
        return any(key.accepts(answer) for key, answer in answers) if answers else None

    def _find(self, text: str, key: Key) -> Answer | Ambiguous | None:
        for place in self._where:
            if place == "tag" and (contents := tagged(self._tag, text)):
                return _agreed([_within(content, key) for content in contents], key)
            if place == "boxed" and (content := boxed(text)) is not None:
                return _within(content, key)
            if place == "statement" and (answer := _stated(text, key)) is not None:
                return answer
            if place == "line" and (answer := _on_a_line(text, key)) is not None:
                return answer
        return None

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        del shared["reference"]
        return {
            "kind": self._make_key.kind,
            "options": self._options_column,
            "where": self._where,
            "tag": self._tag,
            "letters": self._make_key.letters,
            "tolerance": self._make_key.tolerance,
            "decimal": self._make_key.decimal,
            "right": self._worth[0],
            "wrong": self._worth[1],
            "no_answer": self._no_answer,
        } | shared

    def _arguments(self) -> list[str]:
        return [repr(self._reference), *super()._arguments()]


def _stated(text: str, key: Key) -> Answer | Ambiguous | None:
    """The answer of the last statement that holds one; of two that "or" joins, neither if they differ."""
    later: Answer | Ambiguous | None = None
    for statement in stated(text):
        found = key.read(statement.value)
        if found is None:
            continue
        if later is not None:
            return later if found == later else AMBIGUOUS
        if not statement.is_alternative:
            return found
        later = found
    return later


def _within(content: str, key: Key) -> Answer | Ambiguous | None:
    """The answer in a tag or a box."""
    found = _stated(content, key)
    return key.read(content) if found is None else found


def _agreed(answers: Sequence[Answer | Ambiguous | None], key: Key) -> Answer | Ambiguous | None:
    """The answer of all tags that hold one, if they are the same or all right."""
    given = [answer for answer in answers if answer is not None]
    right = all(not isinstance(answer, Ambiguous) and key.accepts(answer) for answer in given)
    return AMBIGUOUS if len(set(given)) > 1 and not right else given[0] if given else None


def _on_a_line(text: str, key: Key) -> Answer | Ambiguous | None:
    """The answer on the last or the first line, where it stands alone."""
    lines = outer_lines(text)
    if len(lines) > 1 and isinstance(key, OptionKey):
        # Lines that begin with different letters list the options, but for one that is a letter and no more.
        marked, lone = (
            {match[1].upper() for match in line.finditer(text)} for line in (_MARKED_LINE, _LETTER_LINE)
        )
        lines = [
            line
            for line in lines
            if not _MARKED_LINE.match(line)
            or len(marked) == 1
            or (len(lone) == 1 and _LETTER_LINE.match(line))
        ]
    found = (key.read(line, bare=True) for line in lines if len(line) < LONGEST_ANSWER)
    return next((answer for answer in found if answer is not None), None)


def _places(where: object) -> tuple[Place, ...]:
    places = (where,) if isinstance(where, str) else tuple(where) if isinstance(where, list | tuple) else ()
    known = get_args(Place)
    if not places or len(set(places)) < len(places) or not all(place in known for place in places):
        raise InputError(f"some of {known}, each once, as where", describe(where), "Pass where=('tag',).")
    return places


def _tag_name(tag: object) -> str:
    if not isinstance(tag, str) or not _TAG_NAME.fullmatch(tag):
        raise InputError(
            "a tag's name (letters, digits, '_' and '-') as tag", describe(tag), "Pass tag='answer'."
        )
    return tag


def _key_maker(kind: Kind, letters: str, tolerance: float, decimal: DecimalMark) -> KeyMaker:
    if kind not in get_args(Kind):
        raise InputError(f"one of {get_args(Kind)} as kind", describe(kind), "Pass kind='auto'.")
    if decimal not in get_args(DecimalMark):
        raise InputError(f"one of {get_args(DecimalMark)} as decimal", describe(decimal), "Pass 'auto'.")
    if not isinstance(letters, str) or not letters or {*letters} - {*string.ascii_uppercase}:
        raise InputError("capital letters as letters", describe(letters), "Pass letters='ABCDE'.")
    if not _is_number(tolerance) or not 0 <= tolerance < 1:
        raise InputError("a tolerance from 0 to below 1", describe(tolerance), "Pass 0.01 for one per cent.")
    return KeyMaker(kind, letters, float(tolerance), decimal)


def _worth(argument: str, value: object) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise InputError(f"a finite number as {argument}", describe(value), f"Pass {argument}=1.0.")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
