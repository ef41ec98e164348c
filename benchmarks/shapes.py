"""The one place for shapes: packed batches for the op, a GRPO batch of texts for the scorer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fastreward.ops.pooled_cosine import LastLayerNorm

EXPLANATIONS: Final = Path(__file__).resolve().parents[1] / "examples" / "data" / "explanations.jsonl"


@dataclass(frozen=True)
class PackedShape:
    """A packed batch of texts of ragged lengths.

    Attributes:
        name: How the shape is called in tables and on command lines.
        num_tokens: T, exactly.
        hidden_size: D.
        mean_tokens: Mean of the lengths before they are clipped.
        min_tokens: The shortest text (the last one may be shorter: it takes what is left of T).
        max_tokens: The longest.
    """

    name: str
    num_tokens: int
    hidden_size: int
    mean_tokens: int
    min_tokens: int
    max_tokens: int

    def lengths(self, seed: int = 0) -> tuple[int, ...]:
        """Draw lengths that sum to T: a gamma distribution of shape 4, clipped.

        Its spread, half of its mean, and its long tail are what explanations written by a model look like.
        """
        generator = np.random.default_rng(seed)
        lengths: list[int] = []
        left = self.num_tokens
        while left:
            drawn = round(generator.gamma(4.0, self.mean_tokens / 4.0))
            lengths.append(min(left, self.max_tokens, max(self.min_tokens, drawn)))
            left -= lengths[-1]
        return tuple(lengths)

    def sized(self, device: torch.device, shrunk: bool) -> PackedShape:
        """The shape as it is run on a device.

        Args:
            device: On CUDA the shape is as it stands; on a CPU it has the 2,048 tokens of a scorer's batch.
            shrunk: A few texts and 48 features instead, to run every step of a benchmark in a moment.
        """
        if shrunk:
            return replace(self, num_tokens=3 * self.max_tokens, hidden_size=48)
        return self if device.type == "cuda" else replace(self, num_tokens=min(2048, self.num_tokens))

    def describe(self) -> dict[str, int]:
        """Sizes for a result file."""
        lengths = self.lengths()
        return {
            "num_tokens": self.num_tokens,
            "num_texts": len(lengths),
            "longest_text": max(lengths),
            "hidden_size": self.hidden_size,
        }


class Noise:
    """Normal random tensors on a device, the same in every run.

    Example:
        >>> Noise(torch.device("cpu"))(2, 3, dtype=torch.bfloat16).shape
        torch.Size([2, 3])
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw a tensor; it is drawn in fp32 and then rounded to `dtype`."""
        drawn = torch.randn(shape, generator=self._generator, device=self._generator.device)
        return drawn.mul_(scale).to(dtype)


# 384, 768 and 1,024 are the widths of the small, base and large encoders; 262,144 tokens are about 1,300
# texts. Lengths up to 512 may be longer than a chunk of `pooled_cosine` and take two launches.
D384: Final = PackedShape("d384", 262_144, 384, mean_tokens=200, min_tokens=16, max_tokens=512)
D768: Final = PackedShape("d768", 262_144, 768, mean_tokens=200, min_tokens=16, max_tokens=512)
D1024: Final = PackedShape("d1024", 262_144, 1024, mean_tokens=200, min_tokens=16, max_tokens=512)
# A quarter of that: a batch of the scorer on a GPU (65,536 tokens, about 330 texts).
D384_64K: Final = PackedShape("d384-64k", 65_536, 384, mean_tokens=200, min_tokens=16, max_tokens=512)
D768_64K: Final = PackedShape("d768-64k", 65_536, 768, mean_tokens=200, min_tokens=16, max_tokens=512)
D1024_64K: Final = PackedShape("d1024-64k", 65_536, 1024, mean_tokens=200, min_tokens=16, max_tokens=512)
SHORT: Final = PackedShape("short", 64 * 64, 384, mean_tokens=64, min_tokens=64, max_tokens=64)

# Where an implementation goes wrong first: (lengths of the texts, hidden size).
EDGE_CASES: Final[dict[str, tuple[tuple[int, ...], int]]] = {
    "one token": ((1,), 384),
    "empty texts among others": ((0, 3, 0, 1, 0), 384),
    "prime lengths": ((2, 3, 5, 7, 11, 13, 127, 251, 257), 384),
    "around the edges of a chunk": ((255, 256, 257, 511, 512, 513), 768),
    "a hidden size that is no power of two": ((31, 300, 1, 64), 1000),
    "one long text": ((1, 8191, 2), 48),
}


@dataclass(frozen=True)
class PooledCosineInputs:
    """What `pooled_cosine` takes, and the lengths on the host."""

    hidden_states: Tensor  # [T, D]
    cu_seqlens: Tensor  # [N + 1]
    references: Tensor  # [R, D]
    reference_index: Tensor  # [N]
    layer_norm: LastLayerNorm | None
    lengths: tuple[int, ...]

    def arguments(self) -> dict[str, Any]:
        """The arguments of `pooled_cosine` by name."""
        return {
            "hidden_states": self.hidden_states,
            "cu_seqlens": self.cu_seqlens,
            "references": self.references,
            "reference_index": self.reference_index,
            "layer_norm": self.layer_norm,
            "max_seqlen": max(self.lengths),
        }


def pooled_cosine_inputs(
    lengths: Sequence[int],
    hidden_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    layer_norm: bool,
    generations: int = 8,
    seed: int = 0,
) -> PooledCosineInputs:
    """Draw hidden states whose scores spread over [-1, 1]; `generations` texts share one reference."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    num_texts = len(lengths)
    references = normal(-(-num_texts // generations), hidden_size)
    reference_index = torch.arange(num_texts, device=device) // generations
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32, device=device)
    text = torch.repeat_interleave(torch.tensor(lengths)).to(device)  # [T]
    # Noise alone would pool to nearly nothing, in a random direction: every score about 0.
    nearness = torch.linspace(-1.0, 1.0, num_texts, device=device)[:, None]
    signal = nearness * references[reference_index]
    hidden_states = (normal(sum(lengths), hidden_size) + signal[text]).to(dtype)
    norm = None
    if layer_norm:
        norm = LastLayerNorm(
            residual=(0.5 * normal(sum(lengths), hidden_size)).to(dtype),
            weight=(1.0 + 0.1 * normal(hidden_size)).to(dtype),
            bias=(0.1 * normal(hidden_size)).to(dtype),
            eps=1e-12,
        )
    return PooledCosineInputs(hidden_states, cu_seqlens, references, reference_index, norm, tuple(lengths))


@dataclass(frozen=True)
class ExplanationBatch:
    """A GRPO step's texts: N = P × G completions, and for each the reference of its prompt."""

    completions: tuple[str, ...]
    references: tuple[str, ...]


def explanation_batch(prompts: int = 64, generations: int = 8) -> ExplanationBatch:
    """Build P × G distinct completions and P distinct references from the example explanations.

    There are 60 items with six candidates each. The first six completions of a prompt are the candidates as
    they stand; the others, and all from the 61st prompt on, are one candidate with a sentence of another one
    behind it. From the 61st prompt on, the reference has a sentence of the candidate `good` behind it.

    Raises:
        ValueError: If so many texts would not all be distinct.
    """
    items = [json.loads(line) for line in EXPLANATIONS.read_text(encoding="utf-8").splitlines()]
    completions: list[str] = []
    references: list[str] = []
    for prompt in range(prompts):
        lap, row = divmod(prompt, len(items))
        candidates = list(items[row]["candidates"].values())
        reference = items[row]["explanation"]
        if lap:
            reference += f" {_first_sentence(items[row]['candidates']['good'])}" * lap
        references += [reference] * generations
        completions += [_completion(candidates, generation, lap) for generation in range(generations)]
    if len(set(completions)) < len(completions) or len(set(references)) < prompts:
        raise ValueError(
            f"{prompts} prompts × {generations} completions from {EXPLANATIONS.name} repeat texts"
        )
    return ExplanationBatch(tuple(completions), tuple(references))


def _completion(candidates: Sequence[str], generation: int, lap: int) -> str:
    again, first = divmod(generation, len(candidates))
    if not again and not lap:
        return candidates[first]
    second = (first + 1 + again + 2 * lap) % len(candidates)
    return f"{candidates[first]} {_first_sentence(candidates[second])}"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+", text)[0]
