"""A rollout, and the log-probabilities of its completions' tokens under a model.

Axes: N completions of a rollout, B of a micro-batch, L tokens of the longest completion, S with its prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastreward.integrations.prompts import Prompts

Forward: TypeAlias = Callable[["Rollout"], tuple[Tensor, Tensor]]
"""Rows → log-probabilities and entropies of their completions' tokens, [B, L]."""


@dataclass(frozen=True)
class Rollout:
    """Completions that were drawn together, those of one prompt beside each other, on the model's device."""

    input_ids: Tensor  # [N, S], int64: prompts padded on the left, completions on the right
    attention_mask: Tensor  # [N, S], int64: 0 for padding
    mask: Tensor  # [N, L], bool: tokens of completions that count; the end token does, nothing after it
    truncated: Tensor  # [N], bool: no end token was reached
    texts: list[Any]  # N strings, or conversations of one message, as a reward takes them
    completion_ids: list[list[int]]  # N, the end token included
    old_logprobs: Tensor | None = None  # [N, L], of the policy that wrote them, where that is another one

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        completion_ids: list[list[int]],
        tokenizer: Any,
        ends: Sequence[int],
        device: torch.device | str,
    ) -> Rollout:
        """Set N completions, as many for each prompt, behind their prompts."""
        count, pad = len(completion_ids) // len(prompts.ids), tokenizer.pad_token_id
        before = [ids for ids in prompts.ids for _ in range(count)]
        width, length = max(map(len, before)), max(map(len, completion_ids))
        blanks = [(width - len(b), length - len(c)) for b, c in zip(before, completion_ids, strict=True)]
        parts = list(zip(blanks, before, completion_ids, strict=True))
        ids = [[pad] * left + b + c + [pad] * right for (left, right), b, c in parts]
        real = [[0] * left + [1] * len(b + c) + [0] * right for (left, right), b, c in parts]
        attention_mask = torch.tensor(real, device=device)
        return cls(
            torch.tensor(ids, device=device),
            attention_mask,
            attention_mask[:, width:].bool(),
            torch.tensor([ids[-1] not in ends for ids in completion_ids], device=device),
            prompts.texts(completion_ids, tokenizer),
            completion_ids,
        )

    def rows(self, places: Tensor) -> Rollout:
        """Return some rows, [B] of int64, without the columns that are padding in all of them."""
        picked = self.attention_mask[places]
        used = picked.any(dim=0).nonzero()[:, 0].tolist()
        columns = slice(used[0], used[-1] + 1)
        length = columns.stop - self.input_ids.shape[1] + self.mask.shape[1]
        return Rollout(
            self.input_ids[places, columns],
            picked[:, columns],
            self.mask[places, :length],
            self.truncated[places],
            [self.texts[place] for place in places.tolist()],
            [self.completion_ids[place] for place in places.tolist()],
            None if self.old_logprobs is None else self.old_logprobs[places, :length],
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint can hold: tensors on the CPU, lists, texts."""
        return {n: v.cpu() if isinstance(v, Tensor) else v for n, v in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Rollout:
        """Make it of a `state`."""
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in state.items()}
        return cls(**moved)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, [N], on the CPU."""
        return torch.tensor([len(ids) for ids in self.completion_ids])

    def with_logprobs(self, forward: Forward, micro_batch_size: int) -> Rollout:
        """Return it with the log-probabilities of a model's `forward`."""
        rows = torch.arange(len(self.mask), device=self.mask.device)
        parts = [forward(self.rows(places))[0] for places in torch.split(rows, micro_batch_size)]
        length = self.mask.shape[1]
        padded = [torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in parts]
        return replace(self, old_logprobs=torch.cat(padded))

    def without_truncated(self) -> Rollout:
        """Return it with no token that counts where no end was reached."""
        return replace(self, mask=self.mask & ~self.truncated[:, None])


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
