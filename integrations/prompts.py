"""Rows of data for training by rewards: checked before any work begins, and their prompts as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch

from fastreward.errors import InputError
from fastreward.integrations.generation import seed_of
from fastreward.rewards.base import ColumnKind, is_missing, several
from fastreward.rewards.components import columns_read

RESERVED: Final = ("prompts", "completions", "completion_ids", "log_metric")
"""What a reward is called with beside the columns of the rows."""


@dataclass(frozen=True)
class Prompts:
    """Rows of data, checked, and their prompts as tokens."""

    rows: list[dict[str, Any]]
    ids: list[list[int]]
    conversational: bool

    @classmethod
    def of(
        cls,
        dataset: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        longest: float,
        references: Mapping[str, ColumnKind] = MappingProxyType({}),
    ) -> Prompts:
        """Tokenise prompts, conversations with the chat template and what begins an answer.

        Raises:
            InputError: There is no row, or one lacks a column of the first or of `references`, has nothing in
                one of these (options may be none), has a name of `RESERVED`, or has a prompt that is empty,
                above `longest` tokens, or a text where the first is a conversation; a reward reads prompts by
                another name than ``prompts``; or the tokenizer has no template for conversations.
        """
        rows = [dict(row) for row in dataset]
        if not rows:
            raise InputError("a row at least", "none", "Pass rows with a prompt.")
        if "prompt" in references:
            remedy = "Name 'prompts', which is what rewards get a row's prompt as."
            raise InputError("rewards that read the column 'prompts'", "one that reads 'prompt'", remedy)
        conversational = not isinstance(rows[0].get("prompt"), str)
        for number, row in enumerate(rows):
            missing = sorted({"prompt", *references, *rows[0]} - row.keys())
            taken = sorted(row.keys() & RESERVED)
            if missing or taken:
                wanted = f"a column {missing[0]!r}" if missing else f"no column {taken[0]!r}"
                raise InputError(f"{wanted} in row {number}", str(sorted(row)), "Add or rename it.")
            if not row["prompt"] or isinstance(row["prompt"], str) == conversational:
                kind = "a conversation, as the first" if conversational else "a text"
                received = repr(row["prompt"])[:80]
                raise InputError(f"{kind}, as the prompt of row {number}", received, "Correct the row.")
            for name, held in references.items():
                if held == "options" and is_missing(row[name]):
                    continue  # one question among others may be without options
                if all(is_missing(one) or not str(one).strip() for one in several(row[name])):
                    expected = f"something in {name!r} of row {number}, by which completions are judged"
                    raise InputError(expected, repr(row[name]), "Fill it, or leave the row out.")
        ids = prompt_ids(tokenizer, [row["prompt"] for row in rows])
        for number, tokens in enumerate(ids):
            if not 0 < len(tokens) <= longest:
                expected = f"1 to {longest} tokens as the prompt of row {number}, what completions leave"
                raise InputError(expected, str(len(tokens)), "Shorten it, or max_completion_length.")
        return cls(rows, ids, conversational)

    def chosen(self, rows: Sequence[int]) -> Prompts:
        """Return some of them."""
        return Prompts([self.rows[row] for row in rows], [self.ids[row] for row in rows], self.conversational)

    def rows_of(self, step: int, number: int, seed: int | None) -> list[int]:
        """Return the rows that a step takes, `number` of them: each is taken once before any is taken again.

        Those of an epoch come in an order that the seed decides, or, with ``None``, as they are.
        """
        taken, count = range(step * number, (step + 1) * number), len(self.rows)
        orders = {epoch: list(range(count)) for epoch in range(taken[0] // count, taken[-1] // count + 1)}
        for epoch in orders if seed is not None else ():
            generator = torch.Generator().manual_seed(seed_of("rows", seed or 0, epoch))
            orders[epoch] = torch.randperm(count, generator=generator).tolist()
        return [orders[place // count][place % count] for place in taken]

    def texts(self, completion_ids: Sequence[Sequence[int]], tokenizer: Any) -> list[Any]:
        """Decode completions as a reward takes them: strings, or conversations of one message."""
        texts: list[str] = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": t}] for t in texts] if self.conversational else texts

    def columns(self, places: Sequence[int], count: int) -> dict[str, list[Any]]:
        """Return what a reward gets beside the texts of some completions, of `count` of each prompt."""
        rows = [self.rows[place // count] for place in places]
        columns = {name: [row[name] for row in rows] for name in self.rows[0]}
        return columns | {"prompts": columns.pop("prompt")}


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Tokenise prompts as the model gets them, conversations with what begins an answer.

    Args:
        tokenizer: A tokenizer of transformers.
        prompts: Texts, or conversations of messages with a role and content.

    Raises:
        InputError: A conversation comes and the tokenizer has no chat template.
    """
    chats = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    if chats and not tokenizer.chat_template:
        remedy = "Pass prompts that are texts, or a tokenizer of a model that was trained on conversations."
        raise InputError("a tokenizer with a chat template", "one without", remedy)
    ids: list[list[int]] = [[]] * len(prompts)
    texts = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    if texts:
        found = tokenizer([prompts[i] for i in texts])["input_ids"]
        for i, tokens in zip(texts, found, strict=True):
            ids[i] = list(tokens)
    if chats:
        options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True}
        found = tokenizer.apply_chat_template([prompts[i] for i in chats], **options)["input_ids"]
        for i, tokens in zip(chats, found, strict=True):
            ids[i] = list(tokens)
    return ids


def context_length(model: Any) -> int | None:
    """Return how many tokens a model has positions for, or ``None`` if its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def reference_columns(reward: Any) -> dict[str, ColumnKind]:
    """Name the columns of rows by which a reward and those in it judge completions, and what each holds.

    Those that come from elsewhere, as ``prompts`` does from a row's `prompt`, are not among them.

    Example:
        >>> from fastreward import AnswerReward, CombinedReward, FormatReward
        >>> reference_columns(CombinedReward([AnswerReward("answer"), FormatReward()]))
        {'answer': 'answer'}
    """
    return {name: kind for name, kind in columns_read(reward).items() if name not in RESERVED}
