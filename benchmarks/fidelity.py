"""Scores on a GPU held against the CPU's in fp32: what a faster precision may cost.

Random encoders in which every parameter matters, and texts that share from none to all of their tokens with
their reference, so that scores spread; with the real all-MiniLM-L6-v2, the example explanations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.checkpoints import (
    BGE_BASE,
    FIRST_WORD,
    MINILM_L6,
    MODERNBERT_BASE,
    XLM_R_BASE,
    EncoderShape,
    checkpoint_folder,
)
from benchmarks.measure import errors, spearman
from benchmarks.shapes import PackedShape, explanation_batch
from benchmarks.workloads import NOT_HERE, Fidelity, Finding, why
from fastreward import Scorer
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged, load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.engine import MAX_BATCH_TOKENS
from fastreward.packing import PackedBatch, pack, token_budget_batches

CPU: Final = torch.device("cpu")
SHAPES: Final = (MINILM_L6, XLM_R_BASE, BGE_BASE, MODERNBERT_BASE)

FP32_MAX_ERROR: Final = 1e-4
BF16_SPEARMAN: Final = 0.999
FP8_SPEARMAN: Final = 0.995
FP8_FROM_WIDTH: Final = 768
"""Below this width products in 8 bits gain nothing and are refused."""


@dataclass(frozen=True)
class IdPairs:
    """Completions and references as token ids, and for each completion the row of its reference."""

    completions: Sequence[Sequence[int]]
    references: Sequence[Sequence[int]]
    reference_index: Sequence[int]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every text that is encoded: the completions', then the references'."""
        return tuple(map(len, (*self.completions, *self.references)))


def overlapping_pairs(num_texts: int, vocab_size: int, *, longest: int, generations: int = 8) -> IdPairs:
    """Draw completions that share with their reference a part of its tokens, from none to all of them."""
    rng = random.Random(0)
    shape = PackedShape("", longest * num_texts // 4, 0, longest // 3, longest // 16, longest)
    lengths = shape.lengths()[:num_texts]
    words = range(FIRST_WORD, vocab_size)
    references = [rng.choices(words, k=rng.choice(lengths)) for _ in range(-(-num_texts // generations))]
    completions = []
    for text, length in enumerate(lengths):
        reference, share = references[text // generations], rng.random()
        drawn = rng.choices(words, k=length)
        completions.append([rng.choice(reference) if rng.random() < share else word for word in drawn])
    return IdPairs(completions, references, [text // generations for text in range(len(completions))])


class PackedScoring:
    """A packed encoder from ids to scores, batched as the scorer does.

    Args:
        encoder: Computes.
        max_batch_tokens: Tokens of a batch at most; None is the scorer's own choice.
    """

    def __init__(self, encoder: PackedEncoder, max_batch_tokens: int | None = None) -> None:
        self._encoder = encoder
        self._max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[encoder.device.type]

    def score(self, pairs: IdPairs) -> Tensor:
        """Score each completion against its reference: [N], fp32."""
        encoder = self._encoder
        references = self._encode(pairs.references, lambda batch, rows: encoder.embed(batch))
        index = torch.tensor(pairs.reference_index, device=encoder.device)
        return self._encode(
            pairs.completions, lambda batch, rows: encoder.cosine(batch, references, index[rows])
        )

    def _encode(
        self, texts: Sequence[Sequence[int]], compute: Callable[[PackedBatch, Tensor], Tensor]
    ) -> Tensor:
        device = self._encoder.device
        batches = token_budget_batches([len(ids) for ids in texts], self._max_batch_tokens)
        computed = [
            compute(pack([texts[row] for row in rows], device), torch.tensor(rows, device=device))
            for rows in batches
        ]
        order = torch.tensor([row for rows in batches for row in rows], device=device)
        results = torch.cat(computed)
        return torch.empty_like(results).index_copy_(0, order, results)


def random_scores(
    shape: EncoderShape, device: torch.device, shrunk: bool, encoder: Path | None
) -> Iterator[Finding]:
    """Hold a random encoder's scores against its own on the CPU in fp32."""
    shape = shape.shrunk() if shrunk else shape
    pairs = overlapping_pairs(64 if shrunk else 160, shape.vocab_size, longest=256)
    checkpoint = load_checkpoint(checkpoint_folder(shape))

    def scores(device: torch.device, dtype: torch.dtype) -> Tensor:
        return PackedScoring(PackedEncoder(checkpoint, device, dtype, pooling=shape.pooling)).score(pairs)

    yield from _findings(shape.name, scores, device, shape.hidden_size)


def minilm_scores(device: torch.device, shrunk: bool, encoder: Path | None) -> Iterator[Finding]:
    """Hold the real encoder's scores of the example explanations against the CPU's in fp32."""
    name = "all-MiniLM-L6-v2"
    source = str(encoder) if encoder is not None else DEFAULT_ENCODER
    if encoder is None and not is_packaged(source):
        reason = "not installed here; name its folder with --encoder"
        yield Finding(name, "largest error", None, FP32_MAX_ERROR, at_most=True, reason=reason)
        return
    batch = explanation_batch(2 if shrunk else 32, 6)

    def scores(device: torch.device, dtype: torch.dtype) -> Tensor:
        made = Scorer(source, device=str(device), dtype=dtype, progress=False)
        return made.score(batch.completions, batch.references)

    yield from _findings(name, scores, device, 384)


def _findings(
    name: str, scores: Callable[[torch.device, torch.dtype], Tensor], device: torch.device, width: int
) -> Iterator[Finding]:
    """fp32 by its largest error; bf16, and 8 bits where they pay, by the order of the scores."""
    expected = scores(CPU, torch.float32).cpu()
    exact, _ = errors(scores(device, torch.float32), expected)
    yield Finding(f"{name}, fp32", "largest error", exact, FP32_MAX_ERROR, at_most=True)
    rounded = [("bf16", torch.bfloat16, BF16_SPEARMAN)]
    if width >= FP8_FROM_WIDTH:
        rounded.append(("fp8", torch.float8_e4m3fn, FP8_SPEARMAN))
    for precision, dtype, bound in rounded:
        try:
            value: float | None = spearman(scores(device, dtype), expected)
            reason = ""
        except NOT_HERE as error:
            value, reason = None, why(error)
        yield Finding(f"{name}, {precision}", "Spearman", value, bound, reason=reason)


FIDELITY: Final = (
    *(Fidelity(f"scores-{shape.name}", partial(random_scores, shape)) for shape in SHAPES),
    Fidelity("scores-all-minilm-l6-v2", minilm_scores),
)
