"""Cosines of unit vectors: of pairs, of all with all, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.encoders.numerics import own_numerics
from fastreward.engine import Engine
from fastreward.errors import NonFiniteError
from fastreward.ops.pooled_cosine import pooled_cosine
from fastreward.packing import upload

PAIRS_AT_ONCE: Final = 16384
"""Pairs that are scored at once: bounds the memory of the vectors that are gathered for them."""

SCORES_AT_ONCE: Final = 2**24
"""Scores of all texts with all references that are on the device at once: 64 MiB."""


def pair_cosines(
    engine: Engine, vectors: Tensor, references: Tensor, pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """Score pairs of rows (text, reference): [N, D] and [R, D] → [pairs], fp32, on their device."""
    gathered_bytes = 4 * vectors.shape[1] * vectors.element_size()  # two vectors, and each in unit length
    at_once = engine.budget.at_once(gathered_bytes, PAIRS_AT_ONCE)
    columns = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    text_rows, reference_rows = upload(list(columns), vectors.device)
    parts = (slice(first, first + at_once) for first in range(0, len(pairs), at_once))
    return torch.cat([_cosines(vectors[text_rows[part]], references, reference_rows[part]) for part in parts])


def all_cosines(engine: Engine, vectors: Tensor, references: Tensor) -> Tensor:
    """Score each text with each reference: [N, D] and [R, D] → [N, R], fp32, on the CPU."""
    num_texts, num_references = len(vectors), len(references)
    scores = torch.empty((num_texts, num_references), dtype=torch.float32, device="cpu")
    at_once = PAIRS_AT_ONCE if engine.batch_invariant else SCORES_AT_ONCE
    rows = engine.budget.at_once(4 * num_references, max(1, at_once // num_references))
    for first in range(0, num_texts, rows):
        part = vectors[first : first + rows]
        if engine.batch_invariant:  # a matrix product's bits may depend on how many rows it has
            pairs = [(row, column) for row in range(len(part)) for column in range(num_references)]
            product = pair_cosines(engine, part, references, pairs).view(len(part), num_references)
        else:
            with own_numerics(engine.device, torch.float32):
                product = (part @ references.T).clamp_(-1.0, 1.0)
        scores[first : first + rows] = product
    return scores


def best_of(scores: Tensor, chosen: Sequence[Sequence[int]]) -> Tensor:
    """Take each completion's best pair: [pairs] → [N]."""
    flat = scores[torch.tensor([pair for pairs in chosen for pair in pairs], dtype=torch.int64, device="cpu")]
    lengths = torch.tensor([len(pairs) for pairs in chosen], dtype=torch.int64, device="cpu")
    return torch.segment_reduce(flat, "max", lengths=lengths, axis=0)


def require_finite(values: Tensor, dtype: torch.dtype) -> None:
    """Refuse what an encoder that computes in `dtype` has made, if not all of it is finite.

    Raises:
        NonFiniteError: If a value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            "finite values from the encoder",
            f"NaN or infinity in {dtype_name(dtype)}",
            "Check the checkpoint: fp32 has all the range there is."
            if dtype == torch.float32
            else "Pass dtype='float32', which has the most range and precision.",
        )


def _cosines(vectors: Tensor, references: Tensor, reference_index: Tensor) -> Tensor:
    """Score unit vectors [N, D] against the references they point to: each a text of one token to the op."""
    cu_seqlens = torch.arange(len(vectors) + 1, dtype=torch.int32, device=vectors.device)
    return pooled_cosine(vectors, cu_seqlens, references, reference_index, max_seqlen=1)
