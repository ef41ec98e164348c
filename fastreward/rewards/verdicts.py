"""Verdicts: rewards of 1.0 or 0.0 on a text's form, best used as gates of a `CombinedReward`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final

from fastreward.errors import InputError
from fastreward.rewards.base import NoText, TextReward, as_list, check_column
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.language import MIN_SHARE, LanguageGuess, guess_language

__all__ = ["EndingReward", "LanguageReward"]

LONG: Final = 20
"""Words from which on a text without function words is no prose. In the honest texts of the example data that
are as long, their share is 0.28 or more."""

_CLOSERS: Final = "\"'”’»›)]}*_` \t\r\n"
_FULL_STOPS: Final = ".!?…。！？｡؟۔।॥։።"
_BOX: Final = r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"  # with braces in it, two deep
_CLOSED: Final = re.compile(rf"(?:</[\w:-]{{1,64}}\s*>|```|\$\$|\\\]|\\end\{{\w+\}}|{_BOX}\$?)\Z")


class LanguageReward(TextReward):
    """Judge whether a completion is written in its reference's language.

    1.0 if it is, 0.0 if it is in another, by `language.guess_language`. A text of `LONG` words or more in
    which hardly any is a function word of the reference's language is not written in it, whatever its words
    are: 0.0 for key words piled up. ``None``, no verdict, where the language of the reference or of a shorter
    completion cannot be told; as a gate, write ``Gate("language_reward", undecided="open")``, so that nobody
    loses by that.

    What it cannot do: tell languages other than English, Italian, French, Spanish, German and Portuguese from
    one another, unless by their script; see a foreign sentence in a long text; know terms from words.

    Args:
        reference: Name of the column with the references; of several, any language counts.
        extract: The part of the completion that counts, as for `SemanticReward`.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion with nothing to judge is worth: ``"zero"`` for 0.0 or ``"none"``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reference = "Il cuore spinge il sangue nei vasi di tutto il corpo."
        >>> LanguageReward()(
        ...     completions=[
        ...         "È il cuore che fa circolare il sangue nelle arterie e nelle vene.",
        ...         "It is the heart that makes the blood go round in the arteries and in the veins.",
        ...         "Il cuore.",
        ...     ],
        ...     reference=[reference] * 3,
        ... )
        [1.0, 0.0, None]
    """

    def __init__(
        self,
        *,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "language_reward",
    ) -> None:
        super().__init__(
            reference=reference, extract=extract, strip_thinking=strip_thinking, no_text=no_text, name=name
        )

    def _score(self, texts: list[str], references: list[Any]) -> list[float | None]:
        distinct = dict.fromkeys([*texts, *(text for own in references for text in own)])
        guesses = {text: guess_language(text) for text in distinct}
        return [
            _same_language(guesses[text], {found for one in own if (found := guesses[one].language)})
            for text, own in zip(texts, references, strict=True)
        ]


class EndingReward(TextReward):
    r"""Judge whether a completion comes to its end, or stops because it was cut off.

    A text cut off has nothing wrong in it yet, and an encoder that truncates may not even see where it stops.
    1.0 if the completion ends, 0.0 if not.

    By its token ids, if `eos` is given and the trainer hands over ``completion_ids``: it ends if its last id
    is one of `eos`. Else by its text: it ends with a full stop, question or exclamation mark or ellipsis,
    closing quotes, brackets and emphasis after it left out, or with a closing tag, a closed code block, a
    closed displayed formula or a closed ``\boxed{…}``. The text does not tell a decimal point or an
    abbreviation from a full stop, nor a heading from a sentence that was cut off.

    Args:
        eos: The id, or ids, that end a completion: ``tokenizer.eos_token_id``.
        completion_ids: Name of the column with the token ids.
        strip_thinking: Whether ``<think>…</think>`` is removed first; what never stops thinking has no text.
        no_text: What a blank completion is worth: ``"zero"`` for 0.0 or ``"none"`` for ``None``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> EndingReward()(completions=["It pumps blood.", "It pumps", "<answer>B</answer>"])
        [1.0, 0.0, 1.0]
        >>> EndingReward(eos=2)(completions=["It pumps.", "It pumps."], completion_ids=[[7, 8, 2], [7, 8, 9]])
        [1.0, 0.0]
    """

    _LOGGED: ClassVar[tuple[str, ...]] = ("no_text",)
    _NEEDS_REFERENCE: ClassVar[bool] = False

    def __init__(
        self,
        *,
        eos: int | Collection[int] | None = None,
        completion_ids: str = "completion_ids",
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "ending_reward",
    ) -> None:
        check_column("completion_ids", completion_ids)
        self._eos = _read_eos(eos)
        self._ids = completion_ids
        super().__init__(reference=None, strip_thinking=strip_thinking, no_text=no_text, name=name)

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[Any]:
        """For each completion its last id in a tuple, or True where ids do not count."""
        if self._eos is None or columns.get(self._ids) is None:
            return [True] * count
        entries = self._read_column(self._ids, columns, count)
        return [_last_id(entry, f"{self._ids}[{i}]") for i, entry in enumerate(entries)]

    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        eos = self._eos or frozenset()
        return [
            float(_ends(text) if last is True else last[0] in eos)
            for text, last in zip(texts, references, strict=True)
        ]

    def _options(self) -> dict[str, object]:
        eos = None if self._eos is None else sorted(self._eos)
        return {"eos": eos, "completion_ids": self._ids, **super()._options()}


def _same_language(guess: LanguageGuess, wanted: Collection[str]) -> float | None:
    if not wanted:
        return None
    if guess.language is not None:
        return float(guess.language in wanted)
    known = [guess.shares[language] for language in wanted if language in guess.shares]
    no_prose = guess.words >= LONG and len(known) == len(wanted) and max(known) < MIN_SHARE
    return 0.0 if no_prose else None


def _read_eos(eos: object) -> frozenset[int] | None:
    if eos is None:
        return None
    ids = [eos] if isinstance(eos, int) else as_list("eos", eos)
    if not ids or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise InputError("a token id, or several, as eos", describe(eos), "Pass tokenizer.eos_token_id.")
    return frozenset(one for one in ids if isinstance(one, int))


def _last_id(entry: Any, where: str) -> tuple[int]:
    """The last id, or -1 for a completion of no tokens; in a tuple, since the id 0 is no missing one."""
    try:
        return (int(entry[-1]),) if len(entry) else (-1,)
    except (TypeError, ValueError, KeyError):
        raise InputError("token ids", f"{describe(entry)} in {where}", "Pass a list of ints.") from None


def _ends(text: str) -> bool:
    text = text.rstrip()
    if _CLOSED.search(text[-200:]):
        return True
    return text.rstrip(_CLOSERS).endswith(tuple(_FULL_STOPS))
