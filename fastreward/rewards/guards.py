"""Guards: rewards that take back what a text gains without being a better explanation.

Each is a reward of its own. Two are penalties, to be added: `PromptCopyReward` and `ContrastReward`. Two are
verdicts, 1.0 or 0.0, best used as gates of a `CombinedReward`: `LanguageReward` and `EndingReward`. The
length and the repetition of a text are judged by `LengthReward` and `RepetitionReward`, which serve as
either.

A penalty invites silence: a completion without text pays none, and its 0.0 is more than an honest one gets
whose penalty is larger than its similarity. With a weight of 1.0 for `PromptCopyReward` that is one in four
of the example data's good explanations, with one half none.

What none of them cures: a text that says the opposite in nearly the reference's words. Its embedding is the
reference's own: the negated explanations of the example data have a mean cosine of 0.97, good ones 0.63.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeGuard, get_args

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.rewards.base import NoText, TextReward, as_list, check_column
from fastreward.rewards.completion import Extract, completion_text, describe
from fastreward.rewards.gates import is_number
from fastreward.rewards.language import MIN_SHARE, LanguageGuess, guess_language
from fastreward.rewards.reference_reward import ReferenceReward
from fastreward.scorer import Scorer

__all__ = ["ContrastReward", "EndingReward", "LanguageReward", "PromptCopyReward"]

Over = Literal["max", "mean"]

Allowed: TypeAlias = float | Literal["reference"]

LONG: Final = 20
"""Words from which on a text without function words is no prose. In the honest texts of the example data that
are as long, their share is 0.28 or more."""

_CLOSERS: Final = "\"'”’»›)]}*_` \t\r\n"
_FULL_STOPS: Final = ".!?…。！？｡؟۔।॥։።"
_BOX: Final = r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"  # with braces in it, two deep
_CLOSED: Final = re.compile(rf"(?:</[\w:-]{{1,64}}\s*>|```|\$\$|\\\]|\\end\{{\w+\}}|{_BOX}\$?)\Z")


class PromptCopyReward(ReferenceReward):
    """Take back what a completion gains by repeating its prompt.

    A question and a good explanation of its answer are about the same things, and so a copy of the question,
    its options added, can be as near to the reference as an honest explanation. The reward is

        -max(0, cos(completion, prompt) - allowed),

    from -1 (if nothing is `allowed`) to 0, and is added to a `SemanticReward` with a weight of one half, or
    of up to one if `allowed` is ``"reference"``. Within a group all completions have one prompt, so that what
    the honest ones lose in common cancels.

    Prompts are kept in the scorer's cache of references and encoded once a run.

    Args:
        scorer: The scorer that the `SemanticReward` has; or an encoder's name or folder; or ``None``.
        prompt: Name of the column with the prompts, strings or conversations, of which the last message of
            the user counts. A data set's own column with the bare question does better than a prompt full of
            instructions.
        allowed: The similarity to the prompt that costs nothing; or ``"reference"``: that which the sample's
            reference has, the best of several. It needs no number, at the cost of encoding references as
            often as completions.
        reference: Name of the column with the references; read if `allowed` is ``"reference"``.
        extract: The part of the completion that counts, as for `SemanticReward`.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion with nothing to compare is worth: ``"zero"`` for 0.0 or ``"none"``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = PromptCopyReward(Scorer(dtype="float32"), prompt="question")
        >>> rewards = reward(
        ...     completions=["What does the heart do?", "It pumps blood."],
        ...     question=["What does the heart do?"] * 2,
        ... )
        >>> [round(value, 2) for value in rewards]
        [-1.0, -0.53]
    """

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        prompt: str = "prompts",
        allowed: Allowed = 0.0,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "prompt_copy_reward",
    ) -> None:
        check_column("prompt", prompt)
        if allowed != "reference" and not (is_number(allowed) and -1 <= allowed <= 1):
            raise InputError(
                "a similarity from -1 to 1, or 'reference', as allowed", describe(allowed), "Correct it."
            )
        self._prompt = prompt
        self._allowed: Allowed = allowed
        super().__init__(
            scorer,
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text=no_text,
            name=name,
        )

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[Any]:
        """For each completion its prompt and its references; ``None`` where either is missing."""
        prompts = self._read_column(self._prompt, columns, count)
        texts = [_prompt_text(entry, f"{self._prompt}[{i}]") for i, entry in enumerate(prompts)]
        if self._allowed != "reference":
            return [(text, []) if text else None for text in texts]
        references = super()._read_references(columns, count)
        return [(text, own) if text and own else None for text, own in zip(texts, references, strict=True)]

    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        prompts = [prompt for prompt, _ in references]
        near = self.scorer.score(texts, prompts)
        allowed = self._allowed if self._allowed != "reference" else self._nearest(references)
        values: list[float] = (-(near - allowed).clamp(min=0.0)).tolist()
        return values

    def _nearest(self, references: list[tuple[str, list[str]]]) -> Tensor:
        """How near the best of each sample's references is to its prompt: [N]."""
        pairs = list(dict.fromkeys((text, prompt) for prompt, own in references for text in own))
        scores = self.scorer.score([text for text, _ in pairs], [prompt for _, prompt in pairs]).tolist()
        near = dict(zip(pairs, scores, strict=True))
        best = [max(near[text, prompt] for text in own) for prompt, own in references]
        return torch.tensor(best, dtype=torch.float32, device="cpu")

    def _options(self) -> dict[str, object]:
        return {"prompt": self._prompt, "allowed": self._allowed, **super()._options()}


class ContrastReward(ReferenceReward):
    """Take back what a completion gains by being near to everything.

    A text that says a little of all subjects, or what is common to all references, scores with each of them.
    The reward is minus its similarity to the other samples' references in the batch,

        -max_j cos(completion, reference_j)   or the mean instead of the largest,

    over the distinct references of the call that are not the completion's own; 0.0 where there is no other.
    It is added to a `SemanticReward` of the same scorer, whose encodings it shares.

    By its nature it depends on the batch: on which prompts the trainer puts on a process in one step. All
    completions of a call are held against the same references, and so are those of a group unless it lies on
    several processes: give a process whole groups, two at least. Where every call is one group (TRL's
    AsyncGRPO) it is always 0.0.

    Args:
        scorer: The scorer that the `SemanticReward` has; or an encoder's name or folder; or ``None``.
        over: What is taken over the other references: ``"max"`` or ``"mean"``.
        reference: Name of the column with the references.
        extract: The part of the completion that counts, as for `SemanticReward`.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion with nothing to compare is worth: ``"zero"`` for 0.0 or ``"none"``.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = ContrastReward(Scorer(dtype="float32"))
        >>> references = ["The heart pumps blood.", "Insulin lowers blood sugar."]
        >>> rewards = reward(
        ...     completions=["The heart and insulin act on blood.", "Sugar."], reference=references
        ... )
        >>> [round(value, 1) for value in rewards]
        [-0.7, -0.2]

    Source: references of the batch as negatives are those of the InfoNCE loss (arXiv 1807.03748).
    """

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        over: Over = "max",
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        name: str = "contrast_reward",
    ) -> None:
        if over not in get_args(Over):
            raise InputError("'max' or 'mean' as over", describe(over), "Correct the name.")
        self._over: Over = over
        super().__init__(
            scorer,
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text=no_text,
            name=name,
        )

    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        distinct = {text: row for row, text in enumerate(dict.fromkeys(r for own in references for r in own))}
        similarity = self.scorer.similarity(texts, list(distinct))
        own = torch.zeros(similarity.shape, dtype=torch.bool, device="cpu")
        for row, texts_of_sample in enumerate(references):
            own[row, [distinct[text] for text in texts_of_sample]] = True
        if self._over == "max":
            near = similarity.masked_fill(own, -torch.inf).amax(dim=1)
        else:
            near = similarity.masked_fill(own, torch.nan).nanmean(dim=1)
        values: list[float] = (-near.masked_fill(own.all(dim=1), 0.0)).tolist()
        return values

    def _options(self) -> dict[str, object]:
        return {"over": self._over, **super()._options()}


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


def _prompt_text(prompt: object, where: str) -> str | None:
    """The text of a prompt; ``None`` where there is none."""
    if prompt is None or isinstance(prompt, str):
        return prompt if prompt and prompt.strip() else None
    try:
        messages = as_list("prompt", prompt)
        # `completion_text` reads what the assistant said: let it read the user so.
        said = [{**message, "role": "assistant"} for message in messages if _by_user(message)]
        return completion_text(said) or None
    except InputError as error:
        raise InputError(
            "a string, a conversation or None as prompt", f"{describe(prompt)} in {where}", error.remedy
        ) from error


def _by_user(message: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(message, Mapping) and message.get("role") == "user"


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
