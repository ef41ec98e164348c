"""The door to `maxsim`: two packed sets of token vectors → precision, recall and F1 of each pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from fastreward.backends import resolve_op
from fastreward.errors import InputError
from fastreward.ops.checks import FLOAT_DTYPES, check_offsets, require
from fastreward.ops.normalization import unit_vectors
from fastreward.ops.pooled_cosine import MAX_HIDDEN_SIZE

ROWS_AT_ONCE: Final = 1024
"""Candidate tokens whose similarities the PyTorch back-end holds in memory at a time."""


@dataclass(frozen=True)
class MaxSim:
    """How well the tokens of N candidates and their references match.

    Attributes:
        precision: [N], fp32, in [-1, 1]: how well each candidate's tokens are found in its reference.
        recall: [N], fp32, in [-1, 1]: how well each reference's tokens are found in its candidate.
        f1: [N], fp32, in [-1, 1]: the harmonic mean of the two.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


def maxsim(
    candidates: Tensor,
    candidate_offsets: Tensor,
    references: Tensor,
    reference_offsets: Tensor,
    reference_index: Tensor,
    *,
    candidate_weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
    max_candidate: int | None = None,
    max_reference: int | None = None,
    backend: str | None = None,
) -> MaxSim:
    """Match each candidate's tokens with those of the reference it points to, both ways.

    For candidate n with tokens c_i, its reference with tokens r_j, r = reference_index[n], and weights v, w:

        s_ij      = c_i · r_j / (|c_i| |r_j|)
        precision = Σ_i v_i max_j s_ij / Σ_i v_i
        recall    = Σ_j w_j max_i s_ij / Σ_j w_j
        f1        = 2 · precision · recall / (precision + recall)

    All sums are fp32 whatever the inputs are, and no matrix of similarities is kept. A zero vector has the
    similarity 0 with every token. A pair of which one side has no tokens, or weights that sum to 0, scores
    0.0 three times. F1 is 0.0 where precision and recall differ in sign: their harmonic mean has a pole
    there, and goes to 0 where either of them does. NaN or infinity in a vector makes the scores of its text's
    pairs NaN, in a weight those that it goes into, and no others.

    Args:
        candidates: [Tc, D], fp32, fp16 or bf16, the candidates' tokens one text after another, D ≤ 4096; the
            last axis is contiguous. Vectors need not have unit length; in bf16 the Triton back-end gives NaN
            for a length outside 1e-15 … 1e15.
        candidate_offsets: [N + 1], int32, on the same device: starts of the texts, from 0, growing, at most
            Tc. Rows behind the last text are ignored.
        references: [Tr, D], of the same dtype.
        reference_offsets: [R + 1], int32, likewise.
        reference_index: [N], int32 or int64, values in [0, R): candidates may share a reference.
        candidate_weights: [Tc], fp32, 0 or more; None is 1 for every token. A token of weight 0 does not
            count, but tokens of the other side may match it.
        reference_weights: [Tr], fp32, likewise.
        max_candidate: The longest candidate in tokens, or a bound on it; it changes no bit, but lets CUDA
            start fewer programs.
        max_reference: The same for the references.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        Precision, recall and F1, each [N], fp32.

    Raises:
        InputError: If a shape, dtype or device does not fit; on the CPU also if a value does not. On CUDA
            values are not looked at, for that would wait for the GPU: offsets must be right, and a
            `reference_index` out of range gives NaN.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> candidates = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # one text of two tokens
        >>> references = torch.tensor([[2.0, 0.0]])  # one text of one token
        >>> offsets = [torch.tensor([0, n], dtype=torch.int32) for n in (2, 1)]
        >>> result = maxsim(candidates, offsets[0], references, offsets[1], torch.tensor([0]))
        >>> result.precision, result.recall, result.f1
        (tensor([0.8000]), tensor([1.]), tensor([0.8889]))

    Source: BERTScore (arXiv 1904.09675), equations of section 3, weights and F1 included; one direction of it
    is the MaxSim of ColBERT (arXiv 2004.12832).
    """
    left = _Side("candidate", candidates, candidate_offsets, candidate_weights, max_candidate)
    right = _Side("reference", references, reference_offsets, reference_weights, max_reference)
    _check(left, right, reference_index)
    if resolve_op("maxsim", candidates.device, backend) == "torch":
        return maxsim_reference(
            candidates,
            candidate_offsets,
            references,
            reference_offsets,
            reference_index,
            candidate_weights=candidate_weights,
            reference_weights=reference_weights,
        )
    from fastreward.kernels.maxsim import launch_maxsim

    scores = launch_maxsim(
        candidates,
        candidate_offsets,
        references,
        reference_offsets,
        reference_index,
        candidate_weights=candidate_weights,
        reference_weights=reference_weights,
        max_candidate=max_candidate,
        max_reference=max_reference,
    )
    return MaxSim(*scores)


def maxsim_reference(
    candidates: Tensor,
    candidate_offsets: Tensor,
    references: Tensor,
    reference_offsets: Tensor,
    reference_index: Tensor,
    *,
    candidate_weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
) -> MaxSim:
    """Define `maxsim` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Formula, arguments, edge cases and source are those of `maxsim`; nothing is checked here. Pair by pair, so
    that a text's score has nothing to do with the rest of the batch; beside the unit vectors, the memory is
    that of `ROWS_AT_ONCE` rows of one pair's similarities.
    """
    left = list(_texts(candidates, candidate_offsets, candidate_weights))
    right = list(_texts(references, reference_offsets, reference_weights))
    scores = torch.zeros((len(left), 3), dtype=torch.float32, device="cpu")
    for pair, row in enumerate(reference_index.tolist()):
        if 0 <= row < len(right):
            scores[pair] = _match(*left[pair], *right[row])
        else:
            scores[pair] = float("nan")
    precision, recall, f1 = scores.to(candidates.device).unbind(1)
    return MaxSim(precision, recall, f1)


def maxsim_flops(candidate_lengths: Sequence[int], reference_lengths: Sequence[int], hidden_size: int) -> int:
    """Count the operations of the similarities, each once, for pairs of these lengths.

    Example:
        >>> maxsim_flops([3, 5], [2, 2], 8)
        256
    """
    pairs = zip(candidate_lengths, reference_lengths, strict=True)
    return 2 * hidden_size * sum(candidate * reference for candidate, reference in pairs)


def maxsim_bytes(
    num_candidate_tokens: int, num_reference_tokens: int, num_pairs: int, hidden_size: int, dtype: torch.dtype
) -> int:
    """Count the bytes that `maxsim` must move: every token's vector once, and three scores a pair."""
    return (num_candidate_tokens + num_reference_tokens) * hidden_size * dtype.itemsize + 12 * num_pairs


@dataclass(frozen=True)
class _Side:
    """The arguments of one side, and what they are called."""

    name: str
    tokens: Tensor
    offsets: Tensor
    weights: Tensor | None
    longest: int | None


def _texts(tokens: Tensor, offsets: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit vectors [L, D] and weights [L] of each text, in fp32."""
    bounds = offsets.tolist()
    if weights is None:
        weights = torch.ones(tokens.shape[0], dtype=torch.float32, device=tokens.device)
    for start, end in pairwise(bounds):
        # Memory of its own, for products may round otherwise where rows begin at another alignment.
        yield unit_vectors(tokens[start:end].float()), weights[start:end].clone()


def _match(candidate: Tensor, left_weights: Tensor, reference: Tensor, right_weights: Tensor) -> Tensor:
    """Score one pair: [3]."""
    weight_sums = left_weights.sum(), right_weights.sum()
    if not all(weight_sums):  # true of NaN, which goes on
        return left_weights.new_zeros(3)
    found = torch.full_like(right_weights, float("-inf"))  # each reference token's best so far
    parts = []
    for start in range(0, len(candidate), ROWS_AT_ONCE):
        similarities = candidate[start : start + ROWS_AT_ONCE] @ reference.T
        parts.append(similarities.amax(dim=1))
        found = torch.maximum(found, similarities.amax(dim=0))
    precision = (torch.cat(parts) * left_weights).sum() / weight_sums[0]
    recall = (found * right_weights).sum() / weight_sums[1]
    precision, recall = precision.clamp(-1.0, 1.0), recall.clamp(-1.0, 1.0)
    f1 = torch.where(precision * recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    return torch.stack([precision, recall, torch.where((precision + recall).isnan(), float("nan"), f1)])


def _check(left: _Side, right: _Side, reference_index: Tensor) -> None:
    device = left.tokens.device
    for side in (left, right):
        _check_side(side, left.tokens)
    num_texts, num_references = left.offsets.shape[0] - 1, right.offsets.shape[0] - 1
    require(
        reference_index.shape == (num_texts,)
        and reference_index.dtype in (torch.int32, torch.int64)
        and reference_index.is_contiguous()
        and reference_index.device == device,
        "reference_index",
        f"[{num_texts}] in int32 or int64 on {device}",
        reference_index,
    )
    if device.type != "cpu":
        return
    for side in (left, right):
        _check_values(side)
    if num_texts:
        low, high = int(reference_index.min()), int(reference_index.max())
        if low < 0 or high >= num_references:
            raise InputError(
                f"reference_index from 0 to {num_references - 1}",
                f"values from {low} to {high}",
                "Pass the reference's number for each candidate.",
            )


def _check_side(side: _Side, like: Tensor) -> None:
    """Check shapes, dtypes and devices of one side; both must be as the candidates are."""
    tokens, width, device = side.tokens, like.shape[-1] if like.ndim else 0, like.device
    same = tokens.ndim == 2 and tokens.shape[1] == width and tokens.dtype == like.dtype
    require(
        same
        and tokens.device == device
        and tokens.dtype in FLOAT_DTYPES
        and 1 <= width <= MAX_HIDDEN_SIZE
        and (tokens.stride(1) == 1 or width == 1),
        f"{side.name}s",
        f"[T, D] in float32, float16 or bfloat16, D from 1 to {MAX_HIDDEN_SIZE}, last axis contiguous, both "
        "sides alike",
        tokens,
    )
    require(
        side.offsets.ndim == 1
        and side.offsets.shape[0] >= 1
        and side.offsets.dtype == torch.int32
        and side.offsets.is_contiguous()
        and side.offsets.device == device,
        f"{side.name}_offsets",
        f"[texts + 1] in int32 on {device}",
        side.offsets,
    )
    if side.weights is not None:
        require(
            side.weights.shape == tokens.shape[:1]
            and side.weights.dtype == torch.float32
            and side.weights.is_contiguous()
            and side.weights.device == device,
            f"{side.name}_weights",
            f"[{tokens.shape[0]}] in float32 on {device}",
            side.weights,
        )
    if side.longest is not None and side.longest < 0:
        raise InputError(f"max_{side.name} of 0 or more", str(side.longest), "Pass the longest, or None.")


def _check_values(side: _Side) -> None:
    """Check offsets and weights of one side on the CPU."""
    names = f"{side.name}_offsets", f"max_{side.name}"
    check_offsets(side.tokens.shape[0], side.offsets, side.longest, names)
    if side.weights is not None and bool((side.weights < 0).any()):
        raise InputError(
            f"{side.name}_weights of 0 or more", f"{float(side.weights.min())} among them", "Clip them at 0."
        )
