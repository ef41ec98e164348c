"""Penalties: rewards that take off for copying and for vagueness, to be added to a `SemanticReward`.

To a penalty 0.0 is the best value, and would pay for silence where a text is missing: an honest explanation
always pays something, and with a weight of 1.0 for `PromptCopyReward` a blank completion would get more than
16 of the 60 good explanations of the example data. So what has no text pays as much as the worst text could.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeGuard, get_args

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.rewards.base import ColumnKind, RewardCounts, as_list, check_column
from fastreward.rewards.completion import Extract, completion_text, describe
from fastreward.rewards.gates import is_number
from fastreward.rewards.reference_reward import ReferenceReward
from fastreward.scorer import Scorer

__all__ = ["ContrastReward", "PromptCopyReward"]

Over = Literal["max", "mean"]

Allowed: TypeAlias = float | Literal["reference"]
Silence = Literal["worst", "zero", "none"]


class Penalty(ReferenceReward):
    """A reward by which a text loses, and no text must not gain; a subclass says what is taken off.

    Args:
        scorer, reference: As in `ReferenceReward`.
        no_text: What a completion with nothing to compare is worth: ``"worst"`` for what the worst text could
            get, ``"zero"`` for 0.0, which excuses it, or ``"none"`` for ``None``.
        extract, strip_thinking, name: As in `base.TextReward`.

    Raises:
        InputError: An argument is not one of the above.
    """

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: Silence = "worst",
        name: str,
    ) -> None:
        if no_text not in get_args(Silence):
            raise InputError(
                "'worst', 'zero' or 'none' as no_text",
                describe(no_text),
                "'worst' punishes, 'zero' excuses, 'none' leaves out.",
            )
        self._silence: Silence = no_text
        super().__init__(
            scorer,
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text="none" if no_text == "none" else "zero",
            name=name,
        )

    @property
    def _worst(self) -> float:
        """The lowest value that a text can get."""
        return -1.0

    @abstractmethod
    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        """Score texts, one at least, each with what it is judged by."""

    def _read_completion(self, index: int, completion: object) -> str | None:
        text = super()._read_completion(index, completion)
        # What is not there goes on to the judgement as an empty text, and pays there.
        return "" if text is None and self._silence == "worst" else text

    def _judge(self, texts: list[str], references: list[Any]) -> tuple[Sequence[float | None], RewardCounts]:
        rewards = [self._worst] * len(texts)
        said = [i for i, text in enumerate(texts) if text]
        if said:
            scores = self._score([texts[i] for i in said], [references[i] for i in said])
            for i, score in zip(said, scores, strict=True):
                rewards[i] = score
        return rewards, RewardCounts(scored=len(said), no_text=len(texts) - len(said))

    def _options(self) -> dict[str, object]:
        return {**super()._options(), "no_text": self._silence}


class PromptCopyReward(Penalty):
    """Take back what a completion gains by repeating its prompt.

    A question and a good explanation of its answer are about the same things, and so a copy of the question,
    its options added, can be as near to the reference as an honest explanation. The reward is

        -max(0, cos(completion, prompt) - allowed),

    from -1 (if nothing is `allowed`) to 0, and is added to a `SemanticReward` with a weight of one half to
    one. Within a group all completions have one prompt, so that what the honest ones lose in common cancels.

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
        no_text: What a completion with nothing to compare is worth: ``"worst"`` for the largest penalty
            there is, -1.0 unless `allowed` is negative; ``"zero"`` for 0.0, which is more than most texts
            get; or ``"none"`` for ``None``.
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
        no_text: Silence = "worst",
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

    def columns_read(self) -> dict[str, ColumnKind]:
        """The column of prompts, and that of references if `allowed` is ``"reference"``."""
        references = super().columns_read() if self._allowed == "reference" else {}
        return {self._prompt: "prompt", **references}

    def _read_references(self, columns: Mapping[str, object], count: int) -> list[Any]:
        """For each completion its prompt and its references; ``None`` where either is missing."""
        prompts = self._read_column(self._prompt, columns, count)
        texts = [_prompt_text(entry, f"{self._prompt}[{i}]") for i, entry in enumerate(prompts)]
        if self._allowed != "reference":
            return [(text, []) if text else None for text in texts]
        references = super()._read_references(columns, count)
        return [(text, own) if text and own else None for text, own in zip(texts, references, strict=True)]

    @property
    def _worst(self) -> float:
        return -1.0 if self._allowed == "reference" else min(self._allowed, 0.0) - 1.0

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


class ContrastReward(Penalty):
    """Take back what a completion gains by being near to everything.

    A text that says a little of all subjects, or what is common to all references, scores with each of them.
    The reward is minus its similarity to the other samples' references in the batch,

        -max_j cos(completion, reference_j)   or the mean instead of the largest,

    over the distinct references of the call that are not the completion's own; 0.0 where there is no other.
    A completion without text counts for none of that and gets -1.0; a reference that only such completions
    have is not among those that the others are held against.
    It is added to a `SemanticReward` of the same scorer, whose encodings it shares.

    By its nature it depends on the batch: on which prompts the trainer puts on a process in one step. All
    completions of a call are held against the same references, and so are those of a group unless it lies on
    several processes: give a process whole groups, two at least. Where every call is one group (TRL's
    AsyncGRPO) it is 0.0 for every text. The bundled loop calls it when all completions of a step are written,
    even if told to score while others are generated.

    Args:
        scorer: The scorer that the `SemanticReward` has; or an encoder's name or folder; or ``None``.
        over: What is taken over the other references: ``"max"`` or ``"mean"``.
        reference: Name of the column with the references.
        extract: The part of the completion that counts, as for `SemanticReward`.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion with nothing to compare is worth: ``"worst"`` for -1.0,
            ``"zero"`` for 0.0, which is more than most texts get, or ``"none"`` for ``None``.
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

    judges_alone: ClassVar[bool] = False

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        over: Over = "max",
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: Silence = "worst",
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
