"""Prompts → completions, and the log-probabilities of a completion's tokens under a model.

Axes: N completions of a rollout, B of a micro-batch, L tokens of the longest completion, S with its prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.integrations.grpo.config import LoopConfig

RESERVED: Final = ("prompts", "completions", "completion_ids", "log_metric")
"""What a reward is called with beside the columns of the rows."""


@dataclass(frozen=True)
class Prompts:
    """Rows of data, checked, and their prompts as tokens."""

    rows: list[dict[str, Any]]
    ids: list[list[int]]
    conversational: bool

    @classmethod
    def of(cls, dataset: Sequence[Mapping[str, Any]], tokenizer: Any, longest: float) -> Prompts:
        """Tokenise prompts, conversations with the chat template and what begins an answer.

        Raises:
            InputError: There is no row, or one lacks a column of the first, has a name of `RESERVED`, or has
                a prompt that is empty, above `longest` tokens, or a text where the first is a conversation.
        """
        rows = [dict(row) for row in dataset]
        if not rows:
            raise InputError("a row at least", "none", "Pass rows with a prompt.")
        conversational = not isinstance(rows[0].get("prompt"), str)
        for number, row in enumerate(rows):
            missing, taken = sorted({"prompt", *rows[0]} - row.keys()), sorted(row.keys() & RESERVED)
            if missing or taken:
                wanted = f"a column {missing[0]!r}" if missing else f"no column {taken[0]!r}"
                raise InputError(f"{wanted} in row {number}", str(sorted(row)), "Add or rename it.")
            if not row["prompt"] or isinstance(row["prompt"], str) == conversational:
                kind = "a conversation, as the first" if conversational else "a text"
                received = repr(row["prompt"])[:80]
                raise InputError(f"{kind}, as the prompt of row {number}", received, "Correct the row.")
        prompts = [row["prompt"] for row in rows]
        if conversational:
            options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True}
            ids = tokenizer.apply_chat_template(prompts, **options)["input_ids"]
        else:
            ids = tokenizer(prompts)["input_ids"]
        for number, tokens in enumerate(ids):
            if not 0 < len(tokens) <= longest:
                expected = f"1 to {longest} tokens as the prompt of row {number}, what completions leave"
                raise InputError(expected, str(len(tokens)), "Shorten it, or max_completion_length.")
        return cls(rows, [list(tokens) for tokens in ids], conversational)

    def chosen(self, rows: Sequence[int]) -> Prompts:
        """Return some of them."""
        return Prompts([self.rows[row] for row in rows], [self.ids[row] for row in rows], self.conversational)

    def rows_of(self, step: int, config: LoopConfig) -> list[int]:
        """Return the rows that a step takes: each is taken once before any is taken again."""
        taken, count = range(step * config.num_prompts, (step + 1) * config.num_prompts), len(self.rows)
        orders = {epoch: list(range(count)) for epoch in range(taken[0] // count, taken[-1] // count + 1)}
        for epoch in orders if config.shuffle else ():
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(count, generator=generator).tolist()
        return [orders[place // count][place % count] for place in taken]


@dataclass(frozen=True)
class Rollout:
    """Completions that were drawn together, those of one prompt beside each other, on the model's device."""

    input_ids: Tensor  # [N, S], int64: prompts padded on the left, completions on the right
    attention_mask: Tensor  # [N, S], int64: 0 for padding
    mask: Tensor  # [N, L], bool: tokens of completions that count; the end token does, nothing after it
    truncated: Tensor  # [N], bool: no end token was reached
    texts: list[Any]  # N strings, or conversations of one message, as a reward takes them
    completion_ids: list[list[int]]  # N, the end token included

    def rows(self, places: Tensor) -> Rollout:
        """Return some rows, [B] of int64, without the columns that are padding in all of them."""
        picked = self.attention_mask[places]
        used = picked.any(dim=0).nonzero()[:, 0].tolist()
        columns = slice(used[0], used[-1] + 1)
        return Rollout(
            self.input_ids[places, columns],
            picked[:, columns],
            self.mask[places, : columns.stop - self.input_ids.shape[1] + self.mask.shape[1]],
            self.truncated[places],
            [self.texts[place] for place in places.tolist()],
            [self.completion_ids[place] for place in places.tolist()],
        )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """List the tokens that end a completion, by the tokenizer and the model's generation settings.

    Raises:
        InputError: There is none, or no token to pad with.
    """
    known = model.generation_config.eos_token_id
    listed = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    if not listed or tokenizer.pad_token_id is None:
        missing = "pad_token" if listed else "eos_token"
        raise InputError(f"{missing} of the tokenizer", "none", f"Set tokenizer.{missing}.")
    return sorted(listed)


@torch.no_grad()
def rollout(
    model: Any, tokenizer: Any, prompts: Prompts, config: LoopConfig, num_generations: int | None = None
) -> Rollout:
    """Draw completions with ``model.generate``.

    Args:
        model: A causal language model of transformers; it is put into evaluation mode.
        tokenizer: Its tokenizer.
        prompts: P prompts.
        config: How to draw.
        num_generations: Completions of a prompt; ``None`` is the configuration's.

    Returns:
        N = P · num_generations completions.

    Raises:
        InputError: There is no end token or no padding token.
    """
    from transformers import GenerationConfig

    count = config.num_generations if num_generations is None else num_generations
    ends, pad, longest = end_tokens(model, tokenizer), tokenizer.pad_token_id, max(map(len, prompts.ids))
    padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts.ids], device=model.device)
    real = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in prompts.ids], device=model.device)
    sampling = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        num_return_sequences=count,
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        eos_token_id=ends,
        pad_token_id=pad,
        disable_compile=True,
    )
    generated = model.eval().generate(input_ids=padded, attention_mask=real, generation_config=sampling)
    completions = generated[:, longest:]
    is_end = torch.isin(completions, torch.tensor(ends, device=completions.device))
    mask = (is_end.cumsum(dim=1) - is_end.long()) == 0  # no end token before it
    attention_mask = torch.cat([real.repeat_interleave(count, dim=0), mask.long()], dim=1)
    kept = [ids[used].tolist() for ids, used in zip(completions.cpu(), mask.cpu(), strict=True)]
    texts: list[Any] = tokenizer.batch_decode(kept, skip_special_tokens=True)
    if prompts.conversational:
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    return Rollout(generated, attention_mask, mask, ~is_end.any(dim=1), texts, kept)


def completion_logprobs(
    model: Any, input_ids: Tensor, attention_mask: Tensor, length: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each of the last tokens under a model, and how open the choice was.

    The logits of the completions are held in fp32: B · length · vocabulary.

    Args:
        model: A causal language model of transformers, wrapped or not.
        input_ids: [B, S], int64.
        attention_mask: [B, S], 0 for padding.
        length: L, tokens of the completions, the last ones of each row.
        temperature: What the logits are divided by.

    Returns:
        Log-probabilities, with a gradient if there can be one, and entropies, without; [B, L] of fp32, or of
        fp64 for a model in it. What stands at padding means nothing.
    """
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": length + 1}
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" in inspect.signature(inner.forward).parameters:
        # Where `generate` puts them: padding on the left moves no token.
        options["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, **options).logits[:, :-1]
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    normaliser = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, input_ids[:, -length:].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():  # row by row: the probabilities of all rows at once would double the peak
        rows = zip(logits, normaliser, strict=True)
        entropies = [total - (torch.softmax(row, dim=-1) * row).sum(dim=-1) for row, total in rows]
    return chosen - normaliser, torch.stack(entropies)
