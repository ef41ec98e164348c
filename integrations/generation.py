"""Completions drawn with transformers' ``model.generate``, each prompt's by a seed of its own."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastreward.errors import InputError

Ended: TypeAlias = Callable[[dict[int, list[int]]], None]
"""Takes the completions that have just ended, by row, each with its tokens, while others go on."""


def seed_of(*names: int | str) -> int:
    """Make a seed of what tells one stream of random numbers from all others.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return random.Random("/".join(map(str, names))).getrandbits(32)


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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0  # share of the probability that is drawn from
    top_k: int = 0  # tokens that are drawn from; 0: all

    @classmethod
    def of(cls, options: Any) -> Sampling:
        """Take what an object has under these names."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


@torch.no_grad()
def generate(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int,
    seeds: Sequence[int],
    ends: Sequence[int],
    pad: int,
    ended: Ended | None = None,
) -> list[list[int]]:
    """Draw completions of prompts.

    Args:
        model: A causal language model of transformers; it is put into evaluation mode.
        prompt_ids: P prompts.
        sampling: How to draw.
        count: Completions of a prompt.
        seeds: P seeds. Save for rounding, a prompt's completions do not depend on what is drawn beside them,
            nor on PyTorch's own random numbers.
        ends: Tokens that end a completion.
        pad: The token to pad with.
        ended: Called with completions that have ended, where others have not.

    Returns:
        P · count completions, those of a prompt beside each other, the end token included.
    """
    from transformers import GenerationConfig

    width = max(map(len, prompt_ids))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompt_ids], device=model.device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=model.device)
    drawing = Drawing(sampling, seeds, count, width, torch.tensor(ends, device=model.device), ended)
    options = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,  # the highest score is taken, and `drawing` decides which that is
        max_new_tokens=sampling.max_completion_length,
        eos_token_id=list(ends),
        pad_token_id=pad,
        disable_compile=True,
        # What is not named is taken from the model's own settings, and a penalty there would change the odds.
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 50, "num_beams": 1},
        **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
    )
    generated = model.eval().generate(
        input_ids=ids.repeat_interleave(count, dim=0),
        attention_mask=real.repeat_interleave(count, dim=0),
        generation_config=options,
        logits_processor=[drawing],
    )
    return [_until_end(row, ends) for row in generated[:, width:].tolist()]


class Writer:
    """Writes completions with the weights that a policy had when the writer last followed it.

    Args:
        model: The policy, a causal language model of transformers.
        tokenizer: Its tokenizer.
        sampling: How to draw.
        has_copy: Write with a copy of the model, so that it may be trained meanwhile.
        engine: Anything with `load` and `generate` as `grpo.vllm.VLLM` has them, to write instead.

    Raises:
        InputError: There is no end token or no padding token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling, *, has_copy: bool = False, engine: Any = None
    ) -> None:
        self.ends, self._pad = end_tokens(model, tokenizer), tokenizer.pad_token_id
        self.model = copy.deepcopy(model).requires_grad_(False) if has_copy else model
        self._sampling, self._engine = sampling, engine

    @torch.no_grad()
    def follow(self, model: Any) -> None:
        """Take over the policy's weights; nothing may be written meanwhile."""
        if self.model is not model:
            for theirs, ours in zip(model.parameters(), self.model.parameters(), strict=True):
                if theirs.requires_grad:
                    ours.copy_(theirs)
        if self._engine is not None:
            self._engine.load(model)

    def at(self, model: Any) -> Writer:
        """Return a writer with the policy's own weights, as they are now and without the engine."""
        other = copy.copy(self)
        other.model, other._engine = model, None
        return other

    def write(
        self,
        prompt_ids: Sequence[Sequence[int]],
        count: int,
        seeds: Sequence[int],
        ended: Ended | None = None,
    ) -> list[list[int]]:
        """Draw `count` completions for each prompt; see `generate`. An engine does not say what has ended."""
        options: dict[str, Any] = {"count": count, "seeds": seeds, "ends": self.ends}
        if self._engine is not None:
            return self._engine.generate(prompt_ids, self._sampling, **options)  # type: ignore[no-any-return]
        return generate(self.model, prompt_ids, self._sampling, pad=self._pad, ended=ended, **options)


class Drawing:
    """Draws tokens as a logits processor of transformers: the highest of its scores is a fair draw.

    To each logit it adds Gumbel noise, -log of an exponential number: the largest sum is then a draw from the
    softmax. Each prompt has random numbers of its own.

    Source: the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030).
    """

    def __init__(
        self,
        sampling: Sampling,
        seeds: Sequence[int],
        count: int,
        width: int,
        ends: Tensor,
        ended: Ended | None,
    ) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._warpers: list[Any] = []
        self._warpers += [TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
        self._warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        self._warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        self._generators = [torch.Generator(ends.device).manual_seed(seed) for seed in seeds]
        self._count, self._width, self._ends, self._ended = count, width, ends, ended
        self._told: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, [N, V], of which the highest is the token drawn."""
        if self._ended is not None and input_ids.shape[1] > self._width:
            self._tell(input_ids[:, self._width :], self._ended)
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        noise = torch.empty_like(scores)
        for rows, generator in zip(torch.split(noise, self._count), self._generators, strict=True):
            rows.exponential_(generator=generator)
        return scores - noise.clamp_(min=1e-30).log_()  # a zero would win whatever the logits are

    def _tell(self, completions: Tensor, ended: Ended) -> None:
        at_end = torch.isin(completions[:, -1], self._ends).nonzero()[:, 0].tolist()
        new = [row for row in at_end if row not in self._told]  # what has ended is padded, maybe with an end
        self._told.update(new)
        if new:
            ended({row: completions[row].tolist() for row in new})


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]
