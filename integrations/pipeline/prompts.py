"""Prompts as conversations, and completions of them, as fine-tuning and evaluation have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastreward.integrations.generation import Sampling, end_tokens, generate, seed_of


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: Without special tokens.
        tokens: How many, the end token included.
        truncated: Whether it was cut off.
    """

    text: str
    tokens: int
    truncated: bool


def as_chat(rows: Sequence[Mapping[str, Any]], system: str = "") -> list[dict[str, Any]]:
    """Make a user's message of each prompt that is a text, and an assistant's of its completion.

    Args:
        rows: With a `prompt`, and perhaps a `completion`.
        system: A message before it, if it is not empty.

    Example:
        >>> as_chat([{"prompt": "Why?", "completion": "So."}])[0]["completion"]
        [{'role': 'assistant', 'content': 'So.'}]
    """
    before = [{"role": "system", "content": system}] if system else []
    made = []
    for row in rows:
        row = dict(row)
        if isinstance(row.get("prompt"), str):
            row["prompt"] = [*before, {"role": "user", "content": row["prompt"]}]
        if isinstance(row.get("completion"), str):
            row["completion"] = [{"role": "assistant", "content": row["completion"]}]
        made.append(row)
    return made


def complete(
    model: Any,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    *,
    max_completion_length: int,
    batch_size: int,
    temperature: float,
    seed: int,
) -> list[Completion]:
    """Write a completion for each prompt with ``model.generate``.

    Prompts of like length go together, which changes nothing but rounding: each draws by a seed of its own.

    Args:
        model: A causal language model of transformers; it is put into evaluation mode, and back.
        tokenizer: Its tokenizer, with an end token and a padding token.
        ids: N prompts as tokens, none empty.
        max_completion_length: Tokens of a completion at most.
        batch_size: Prompts of a call.
        temperature: Of sampling from the whole vocabulary; 0 takes the likeliest token.
        seed: Of sampling.

    Returns:
        N completions.

    Raises:
        InputError: The tokenizer has no end token or no padding token.
    """
    ends, was_training = end_tokens(model, tokenizer), model.training
    drawn = {"temperature": temperature} if temperature > 0 else {"top_k": 1}
    sampling = Sampling(max_completion_length=max_completion_length, **drawn)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    written: dict[int, list[int]] = {}
    try:
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size]
            found = generate(
                model,
                [ids[i] for i in places],
                sampling,
                count=1,
                seeds=[seed_of("evaluation", seed, i) for i in places],
                ends=ends,
                pad=tokenizer.pad_token_id,
            )
            written |= zip(places, found, strict=True)
    finally:
        model.train(was_training)
    texts = tokenizer.batch_decode([written[i] for i in range(len(ids))], skip_special_tokens=True)
    return [Completion(text, len(written[i]), written[i][-1] not in ends) for i, text in enumerate(texts)]
