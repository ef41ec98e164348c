"""FormatReward: whether a completion has the form that was asked for, as a trainer's reward function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from fastreward.errors import InputError
from fastreward.rewards.base import NoText, TextReward
from fastreward.rewards.completion import describe

_TAG_NAME: Final = re.compile(r"[\w-]+")


class FormatReward(TextReward):
    """Reward the form of a completion: every tag there, opened and closed exactly once, in order.

    The reward is 1.0 if each tag's pair stands in the text exactly once, holds some text, neither holds nor
    lies within another of the tags, and the pairs stand in the order of ``tags``; else 0.0. Tags that are not
    asked for are text like any other, and case does not matter. One scan, linear in the text.

    With ``graded`` it is the share of what is satisfied: of all pairs the largest number of sound ones that
    stand in order, where ``outside=False`` counts as one demand more.

    Args:
        tags: The tags' names, in order; a single string is one name.
        outside: Whether text may stand outside of the tags.
        empty: Whether a pair may be empty or hold white space alone.
        graded: Whether a part of the form is worth a part of the reward.
        prefix: What the prompt has already begun the completion with, such as ``"<think>"`` where the chat
            template ends so. It is set before every completion.
        strip_thinking: Whether ``<think>…</think>`` is removed first; ``None`` removes it unless ``"think"``
            is one of ``tags``. A completion that never closes its thinking then has no text.
        no_text: What a completion without text is worth: ``"zero"`` for 0.0 or ``"none"`` for ``None``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above, or a tag is named twice.

    Example:
        >>> reward = FormatReward(("explanation", "answer"), graded=True)
        >>> reward(
        ...     completions=[
        ...         "<explanation>The heart pumps.</explanation> <answer>B</answer>",
        ...         "<explanation>The heart pumps. <answer>B</answer>",
        ...         "B, since the heart pumps.",
        ...     ]
        ... )
        [1.0, 0.5, 0.0]
    """

    _LOGGED: ClassVar[tuple[str, ...]] = ("no_text",)
    _NEEDS_REFERENCE: ClassVar[bool] = False

    def __init__(
        self,
        tags: str | Sequence[str] = ("explanation", "answer"),
        *,
        outside: bool = True,
        empty: bool = False,
        graded: bool = False,
        prefix: str = "",
        strip_thinking: bool | None = None,
        no_text: NoText = "zero",
        name: str = "format_reward",
    ) -> None:
        self._tags = _tag_names(tags)
        if not isinstance(prefix, str):
            raise InputError("a string as prefix", describe(prefix), "Pass prefix='' for none.")
        thinking = "think" in self._tags
        if thinking and strip_thinking:
            raise InputError(
                "tags other than 'think' while thinking is stripped",
                f"the tags {self._tags}",
                "Leave strip_thinking out: thinking stays where its tag is asked for.",
            )
        self._outside, self._empty, self._graded, self._prefix = outside, empty, graded, prefix
        super().__init__(
            reference=None,
            strip_thinking=not thinking if strip_thinking is None else strip_thinking,
            no_text=no_text,
            name=name,
        )

    def _prepare(self, text: str) -> str:
        return self._prefix + text

    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        return [self._form(text) for text in texts]

    def _form(self, text: str) -> float:
        pairs = [pair for pair in sound_pairs(self._tags, text) if self._empty or pair.text.strip()]
        satisfied, demanded = _most_in_order([pair.rank for pair in pairs]), len(self._tags)
        if not self._outside:
            satisfied += not _without(pairs, text).strip()
            demanded += 1
        return satisfied / demanded if self._graded else float(satisfied == demanded)

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        del shared["extract"]
        own = {
            "outside": self._outside,
            "empty": self._empty,
            "graded": self._graded,
            "prefix": self._prefix,
        }
        return own | shared

    def _arguments(self) -> list[str]:
        return [repr(self._tags), *super()._arguments()]


@dataclass(frozen=True)
class Pair:
    """An opening tag, what stands behind it, and its closing tag.

    Attributes:
        rank: The tag's place among those asked for.
        start: Where the opening tag begins in the text.
        end: Where the closing tag ends.
        text: What stands between them.
    """

    rank: int
    start: int
    end: int
    text: str


def sound_pairs(tags: Sequence[str], text: str) -> list[Pair]:
    """Find the tags that are opened and closed exactly once, with none of the others inside or around.

    Args:
        tags: K names, of letters, digits, ``_`` and ``-``.
        text: Any text.

    Returns:
        At most K pairs, in the order of the text.

    Example:
        >>> [pair.text for pair in sound_pairs(["a", "b"], "<a>one</a> <b>two</b>")]
        ['one', 'two']
        >>> sound_pairs(["a", "b"], "<a>one <b>two</b></a>")
        []
    """
    either = "|".join(f"({re.escape(tag)})" for tag in tags)
    found = list(re.finditer(rf"<(/?)(?:{either})>", text, re.IGNORECASE))
    places: list[list[int]] = [[] for _ in tags]
    for place, match in enumerate(found):
        places[(match.lastindex or 2) - 2].append(place)
    # A tag that occurs as often as it should, whatever stands between.
    spans = {
        rank: (at[0], at[1])
        for rank, at in enumerate(places)
        if len(at) == 2 and not found[at[0]][1] and found[at[1]][1]
    }
    sound = [
        Pair(rank, found[first].start(), found[last].end(), text[found[first].end() : found[last].start()])
        for rank, (first, last) in spans.items()
        if last == first + 1 and not any(left < first and last < right for left, right in spans.values())
    ]
    return sorted(sound, key=lambda pair: pair.start)


def _most_in_order(ranks: Sequence[int]) -> int:
    """Length of the longest increasing subsequence; there are as many ranks as tags at most."""
    longest: list[int] = []  # that ends at each rank
    for i, rank in enumerate(ranks):
        longest.append(1 + max((longest[j] for j in range(i) if ranks[j] < rank), default=0))
    return max(longest, default=0)


def _without(pairs: Sequence[Pair], text: str) -> str:
    """What the pairs leave of a text."""
    starts = [0, *(pair.end for pair in pairs)]
    ends = [*(pair.start for pair in pairs), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _tag_names(tags: object) -> tuple[str, ...]:
    """Read the tags' names, in lower case."""
    names = (tags,) if isinstance(tags, str) else tuple(tags) if isinstance(tags, list | tuple) else ()
    if not names or not all(isinstance(name, str) and _TAG_NAME.fullmatch(name) for name in names):
        raise InputError(
            "one or more tags' names (letters, digits, '_' and '-') as tags",
            describe(tags),
            "Pass tags=('explanation', 'answer').",
        )
    lower = tuple(name.lower() for name in names)
    if len(set(lower)) < len(lower):
        raise InputError("each tag once in tags", describe(tags), "Name it once; case does not matter.")
    return lower
